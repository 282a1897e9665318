"""Losses in plain NumPy, which several tests share."""

import numpy as np


def kl(loc, scale, other_loc, other_scale):
  """KL of Normal(loc, scale) from another, float64 of each entry."""
  m, s, n, t = (np.float64(values) for values in (loc, scale, other_loc, other_scale))
  return np.log(t / s) + (s**2 + (m - n) ** 2) / (2 * t**2) - 0.5


def nt_xent_loop(tuples, negatives, temperature=0.5, denominator="negatives"):
  """Equation 9 of the Urkle paper by anchors, of tuples [n, t, d] among negatives [n, s, d]."""
  unit = lambda x: np.float64(x) / np.linalg.norm(x, axis=-1, keepdims=True)  # noqa: E731
  tuples, negatives = unit(tuples), unit(negatives)
  losses = []
  for i, members in enumerate(tuples):
    others, pairs = np.delete(negatives, i, 0).reshape(-1, tuples.shape[-1]), []
    for a, anchor in enumerate(members):
      positives = np.delete(members, a, 0) @ anchor / temperature
      total = np.exp(others @ anchor / temperature).sum()
      if denominator == "all":
        total += np.exp(positives).sum()
      pairs += [np.log(total) - positive for positive in positives]
    losses.append(np.mean(pairs))
  return np.array(losses)

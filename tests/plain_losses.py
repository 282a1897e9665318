"""Losses in plain NumPy, which several tests share."""

import numpy as np


def kl(loc, scale, other_loc, other_scale):
  """KL of Normal(loc, scale) from another, float64 of each entry."""
  m, s, n, t = (np.float64(values) for values in (loc, scale, other_loc, other_scale))
  return np.log(t / s) + (s**2 + (m - n) ** 2) / (2 * t**2) - 0.5


def nt_xent_loop(tuples, negatives, temperature=0.5, denominator="negatives"):
  """Equation 9 of the Urkle paper, term by term, of tuples [n, t, d] among negatives [n, s, d]."""
  unit = lambda x: np.float64(x) / np.linalg.norm(x, axis=-1, keepdims=True)  # noqa: E731
  tuples, negatives = unit(tuples), unit(negatives)
  losses = []
  for i, members in enumerate(tuples):
    pairs = []
    for a, anchor in enumerate(members):
      total = sum(
        np.exp(anchor @ other / temperature)
        for j, others in enumerate(negatives)
        for other in others
        if j != i
      )
      positives = [b for b in range(len(members)) if b != a]
      if denominator == "all":
        total += sum(np.exp(anchor @ members[b] / temperature) for b in positives)
      pairs += [np.log(total) - anchor @ members[b] / temperature for b in positives]
    losses.append(np.mean(pairs))
  return np.array(losses)

"""The Square Attack: random search over squares of pixels, without gradients."""

import functools
import math
from typing import ClassVar

import numpy as np
import tensorflow as tf

from urkle_tf import distribution, errors
from urkle_tf.attacks import base, losses

_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # of a budget of 10,000 queries
_TILES = 5  # of the first proposal of l2 and l1, in each direction


def shares(queries, share=0.8):
  """The share of the pixels that each query changes: halved as published (sec. 4.1).

  Args:
    queries: the budget.
    share: that of the first queries.

  Returns:
    A list of `queries` floats.
  """
  return [
    share / 2 ** sum(10000 * query // queries > limit for limit in _HALVINGS)
    for query in range(queries)
  ]


def template(side, order):
  """The change that l2 and l1 proposals put into a square (sec. 3.4): half up, half down.

  Each half falls off from its middle as sum_{k >= r} 1 / (k + 1)^2, r the distance from it.

  Args:
    side: of the square.
    order: p of the norm.

  Returns:
    float32 [side, side] of unit norm.
  """

  def hill(height, width):
    down, right = np.ogrid[:height, :width]
    radius = np.maximum(abs(down - height // 2), abs(right - width // 2))
    weights = 1 / np.arange(1, max(height, width) // 2 + 2) ** 2.0
    return _unit(weights[::-1].cumsum()[::-1][radius], order)

  upper = side // 2
  halves = [hill(upper, side), -hill(side - upper, side)]
  return _unit(np.concatenate(halves), order).astype(np.float32)


def _unit(values, order):
  return values / max((abs(values) ** order).sum() ** (1 / order), 1e-12)


class Square(base.Attack):
  """The Square Attack (Andriushchenko et al., 2020): score-based random search.

  A proposal changes a random square of each image, whose size shrinks as published.  It is kept for
  the examples whose objective rises.

  - linf: the square is moved by 2 epsilon up or down in each channel, and projected; the start
    is vertical stripes of +-epsilon.
  - l2, and l1 as in Croce and Hein (2021): the change of another square is taken back, and what
    it frees of the norm, with what was still free, goes into the first; the start is a grid of
    such squares.

  It makes only forward passes, and compares the objective between them.  A noisy objective should
  therefore average over its noise, with the same noise at every evaluation.

  ```python
  attack = urkle_tf.attacks.Square(urkle_tf.attacks.Linf(epsilon=8 / 255), queries=100)
  adversaries = attack(objective, images)  # no gradient is used
  ```
  """

  gradients = False
  in_steps = True
  refused: ClassVar = {"training": "makes thousands of forward passes for each image: use pgd"}
  loss = staticmethod(losses.margin)
  fixed_noise = True
  settings = ("queries", "share")

  def __init__(self, threat, queries=5000, restarts=1, share=0.8):
    """Builds the attack.

    Args:
      threat: a `ThreatModel`.
      queries: forward passes per run, >= 1.
      restarts: runs from different random starts, >= 1.
      share: the share of the pixels that the first squares cover, in [0, 1].

    Raises:
      UserError: if an argument is out of its range.
    """
    super().__init__(threat, restarts)
    errors.whole(1, self.name, queries=queries)
    errors.within("[0, 1]", self.name, share=share)
    self.steps = self.queries = int(queries)
    self.share = float(share)

  def _proposals(self, images, rows):
    return (_Stripes if self.threat.norm == "linf" else _Hills)(self.threat, images, rows)

  def begin(self, images, restart, seed):
    rows = tf.range(tf.shape(images)[0])
    return {
      "best": self._proposals(images, rows).start(distribution.fold(seed, 0)),
      "best_values": base.lowest(images),
      "rows": rows,
      "seed": tf.tile(seed[None], [tf.shape(images)[0], 1]),  # the same for all
      "zeros": tf.zeros([]),
    }

  def advance(self, objective, images, state, number):
    best, seed = state["best"], state["seed"][0]
    proposals = self._proposals(images, state["rows"])
    sides = _sides(proposals.side, *images.shape[1:3], self.queries, self.share)
    new = tf.cond(
      number == 0,  # the first query is the start's, which anything is better than
      lambda: best,
      lambda: proposals.propose(best, sides, number, distribution.fold(seed, number)),
    )
    values = base.values(objective, new)
    higher = values > state["best_values"]
    return {
      **state,
      "best": base.choose(higher, new, best),
      "best_values": tf.where(higher, values, state["best_values"]),
    }

  def finish(self, objective, images, state):
    return {"result": state["best"], "objective": state["best_values"]}


@functools.lru_cache(maxsize=8)  # eagerly, every query asks
def _sides(side, height, width, queries, share):
  """The sides of the squares of all queries, int32 [queries]; `side` is that of `_Proposals`."""
  lengths = [math.sqrt(height * width * part) for part in shares(queries, share)]
  return np.array([side(length, height, width) for length in lengths], np.int32)


class _Proposals:
  """What the norms share: squares at random places of each image.

  Args:
    threat: the `ThreatModel`.
    images: float32 [n, h, w, c].
    rows: int32 [n], the images' places in the batch that they come from.
  """

  def __init__(self, threat, images, rows):
    self.threat, self.images, self._rows = threat, images, rows
    self.height, self.width, self.channels = images.shape[1:]

  def uniform(self, seed, count):
    """Uniform in [0, 1): [n, count], keyed by the example of the global batch."""
    size = self.images.shape[0]
    if size is not None:  # then none has left the batch
      return distribution.uniform(seed, [size, count])
    draws = distribution.uniform(seed, tf.stack([tf.reduce_max(self._rows) + 1, count]))
    return tf.gather(draws, self._rows)

  def place(self, draws, side):
    """The first row and column of squares, int32 [n, 2], from uniform draws [n, 2]."""
    room = tf.cast(tf.stack([self.height - side, self.width - side]) + 1, tf.float32)
    return tf.cast(tf.floor(draws * room), tf.int32)

  def signs(self, draws):
    return tf.where(draws < 0.5, -1.0, 1.0)


class _Stripes(_Proposals):
  """Proposals for linf."""

  @staticmethod
  def side(length, height, width):
    return min(max(round(length), 1), height, width)

  def start(self, seed):
    signs = self.signs(self.uniform(seed, self.width * self.channels))
    signs = tf.reshape(signs, [-1, 1, self.width, self.channels])
    return self.threat.project(self.images + self.threat.epsilon * signs, self.images)

  def propose(self, best, sides, number, seed):
    side = tf.gather(sides, number)
    draws = self.uniform(seed, 2 + self.channels)
    moves = 2 * self.threat.epsilon * self.signs(draws[:, 2:])
    square = _Squares(self, self.place(draws[:, :2], side), side)
    columns = square.columns * tf.tile(moves, [1, self.width])
    # Rows of pixels: TensorFlow broadcasts over three axes several times faster than over four.
    change = tf.reshape(square.rows[:, :, None] * columns[:, None], tf.shape(self.images))
    return self.threat.project(best + change, self.images)


@functools.lru_cache(maxsize=32)  # eagerly, every query asks
def _both_ways(side, order):
  """A template, upright and turned: float32 [2, side, side]."""
  hills = template(side, order)
  return np.stack([hills, hills.T])


class _Hills(_Proposals):
  """Proposals for l2 and l1."""

  def __init__(self, threat, images, rows):
    super().__init__(threat, images, rows)
    self.order = {"l2": 2, "l1": 1}[threat.norm]

  @staticmethod
  def side(length, height, width):
    side = max(round(length), 3)
    side += side % 2 == 0
    most = min(height, width)
    return min(side, max(most - (most % 2 == 0), 1))

  def start(self, seed):
    tile = max(min(self.height, self.width) // _TILES, 1)
    hills = template(tile, self.order)
    count = _TILES**2
    places = np.zeros([2, count, self.height, self.width], np.float32)
    for number in range(count):
      top, left = (tile * i for i in divmod(number, _TILES))
      if top + tile <= self.height and left + tile <= self.width:
        square = np.s_[number, top : top + tile, left : left + tile]
        places[0][square], places[1][square] = hills, hills.T
    draws = self.uniform(seed, count * (1 + self.channels))
    turned = draws[:, :count] < 0.5
    turned = tf.cast(tf.stack([turned, ~turned], 1), tf.float32)
    signs = tf.reshape(self.signs(draws[:, count:]), [-1, count, self.channels])
    offsets = tf.einsum("nkt,ntc,kthw->nhwc", turned, signs, places)
    offsets *= self.threat.epsilon / self._norm(offsets, [1, 2, 3])
    return self.threat.project(self.images + offsets, self.images)

  def propose(self, best, sides, number, seed):
    side = tf.gather(sides, number)
    draws = self.uniform(seed, 5 + self.channels)
    filled = _Squares(self, self.place(draws[:, :2], side), side)
    emptied = _Squares(self, self.place(draws[:, 2:4], side), side)
    offsets = tf.reshape(best - self.images, [-1, self.height, self.width * self.channels])
    # Each channel of a square gets what it had in the two, and its part of what is free.
    both, free = self._budget(self._powers(offsets), filled, emptied)
    size = (tf.maximum(free, 0.0) / self.channels + both) ** (1 / self.order)

    def new(side):
      # A random hill, and the direction of what is there.
      there = filled.cut(offsets, side)
      hills = self._hills(side, draws[:, 4] < 0.5) * self.signs(draws[:, 5:])[:, None, None]
      change = hills + there / (self._norm(there) + 1e-12)
      return filled.paste(change * (size[:, None, None] / (self._norm(change) + 1e-12)), side)

    # A branch for each side: XLA needs windows of known shapes.
    known, which = np.unique(sides, return_inverse=True)
    branches = [functools.partial(new, side) for side in known.tolist()]
    pasted = tf.switch_case(tf.gather(which.astype(np.int32), number), branches)
    moved = offsets * (1 - filled.union(emptied)) + pasted
    # The norm is right already, and the pixel box brings no pixel further from the image.
    moved = self.images + tf.reshape(moved, tf.shape(self.images))
    return tf.clip_by_value(moved, self.threat.lower, self.threat.upper)

  def _budget(self, powers, filled, emptied):
    """(what the offsets of two squares have, [n, channels]; what is free, [n, 1])."""
    rows = [filled.rows, emptied.rows, filled.rows * emptied.rows, tf.ones_like(filled.rows)]
    columns = [filled.columns, emptied.columns, filled.columns * emptied.columns]
    columns.append(tf.ones_like(filled.columns))
    found = tf.matmul(tf.stack(rows, 1), powers) * tf.stack(columns, 1)
    found = tf.reduce_sum(tf.reshape(found, [-1, 4, self.width, self.channels]), 2)
    free = self._powers(self.threat.epsilon) - tf.reduce_sum(found[:, 3], 1, keepdims=True)
    return tf.maximum(found[:, 0] + found[:, 1] - found[:, 2], 0.0), free

  def _hills(self, side, turned):
    """Templates, [n, side, side, 1]."""
    return tf.gather(_both_ways(side, self.order), tf.cast(turned, tf.int32))[..., None]

  def _powers(self, values):
    return tf.square(values) if self.order == 2 else tf.abs(values)

  def _norm(self, values, axes=(1, 2)):
    return tf.reduce_sum(self._powers(values), axes, keepdims=True) ** (1 / self.order)


class _Squares:
  """A square of each image, as masks of rows and columns.

  Args:
    proposals: a `_Proposals`.
    corners: their first rows and columns, int32 [n, 2].
    side: their side, int32.
  """

  def __init__(self, proposals, corners, side):
    self._side, self._channels = side, proposals.channels
    self._down = tf.range(proposals.height) - corners[:, :1]
    self._right = tf.range(proposals.width) - corners[:, 1:]
    self._corners = corners
    self.rows = self._within(self._down)  # [n, height]
    self.columns = tf.repeat(self._within(self._right), self._channels, 1)  # [n, width * channels]

  def _within(self, places):
    return tf.cast((places >= 0) & (places < self._side), tf.float32)

  def union(self, other):
    """1 in either square, [n, height, width * channels]."""
    rows = tf.stack([self.rows, other.rows, -self.rows * other.rows], 2)
    columns = [self.columns, other.columns, self.columns * other.columns]
    return tf.matmul(rows, tf.stack(columns, 1))

  def cut(self, values, side):
    """What squares hold of values [n, height, width * channels]: [n, side, side, channels]."""
    within = tf.range(side)
    lines = tf.gather(values, self._corners[:, :1] + within, axis=1, batch_dims=1)
    lines = tf.reshape(lines, [tf.shape(lines)[0], side, -1, self._channels])
    return tf.gather(lines, self._corners[:, 1:] + within, axis=2, batch_dims=1)

  def paste(self, squares, side):
    """Squares in their places, and 0 elsewhere: [n, height, width * channels]."""
    columns = tf.clip_by_value(self._right, 0, side - 1)
    lines = tf.gather(squares, columns, axis=2, batch_dims=1)
    lines = tf.reshape(lines, [tf.shape(lines)[0], side, -1]) * self.columns[:, None]
    return tf.matmul(tf.one_hot(self._down, side), lines)

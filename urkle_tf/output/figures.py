"""Draws on a separate canvas, and writes images to files."""

import warnings

import numpy as np

from urkle_tf.output import files

_LINE = 18  # pixels, the height of a line of titles


def canvas(width, height):
  """An empty matplotlib figure; the caller's backend does not change.

  Args:
    width: inches.
    height: inches.
  """
  from matplotlib import figure, text  # here: a slow import that few commands need
  from matplotlib.backends import backend_agg

  class Plain(figure.Figure):
    """Shows texts as they are: a class may be called "$^$", or have a name that is not UTF-8."""

    def draw(self, renderer):
      for part in self.findobj(text.Text):
        part.set_parse_math(False)
        part.set_text(part.get_text().encode("utf-8", "replace").decode())
      with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # letters that the font lacks become boxes
        super().draw(renderer)

  found = Plain(figsize=(width, height), layout="constrained")
  backend_agg.FigureCanvasAgg(found)
  return found


def pixels(figure, dpi=100):
  """A figure of `canvas` as uint8 [height, width, 3]."""
  figure.set_dpi(dpi)
  figure.canvas.draw()
  return np.array(figure.canvas.buffer_rgba())[..., :3]


def save(picture, file):
  """Writes a PNG file, complete or not at all.

  Args:
    picture: uint8 [height, width, 1 or 3].
    file: a `pathlib.Path`; its folder is made.
  """
  import tensorflow as tf  # here: reports are drawn without it

  files.write(file, tf.io.encode_png(picture).numpy())


def coloured(image):
  """[h, w, c] as [h, w, 3]."""
  channels = 3 if image.shape[-1] >= 3 else 1
  return np.broadcast_to(image[..., :channels], (*image.shape[:2], 3))


def headed(picture, titles):
  """Writes a title above each column of a picture.

  Args:
    picture: uint8 [h, w, 1 or 3], of columns of the same width.
    titles: texts, one for each column.

  Returns:
    uint8 [h + 18, w, 3].
  """
  picture = coloured(picture)
  width = picture.shape[1] / len(titles)
  dpi = 100
  figure = canvas(picture.shape[1] / dpi, _LINE / dpi)
  for column, title in enumerate(titles):
    # A letter is about 0.6 times as wide as the font is high.
    size = min(8.0, width / (0.6 * max(len(title), 1)) * 72 / dpi)
    figure.text((column + 0.5) / len(titles), 0.5, title, fontsize=size, ha="center", va="center")
  line = pixels(figure, dpi)
  # Sizes in inches may round to a pixel more or less.
  whole = np.full((_LINE, *picture.shape[1:]), 255, np.uint8)
  rows, columns = min(_LINE, line.shape[0]), min(picture.shape[1], line.shape[1])
  whole[:rows, :columns] = line[:rows, :columns]
  return np.concatenate([whole, picture])

"""Makes a folder of photos from a data set, to try docs/start.md with.

  python experiments/photos.py FOLDER --data_dir=DATA_DIR

FOLDER/photos gets 3,000 training images of CIFAR-10, FOLDER/labelled/train/CLASS 50 other ones of
each class, and FOLDER/labelled/test/CLASS the first 1,000 test images.  Each image is scaled to a
random size between 28 and 120 pixels, and becomes a PNG or a JPEG file at random.
"""

import collections
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # not installed works too

from experiments import quiet  # noqa: F401

# isort: split

import numpy as np
from absl import logging
from PIL import Image

from experiments import jobs
from urkle_tf.data import sources

SIZES = 28, 121  # pixels of a side; the end is excluded


def save(pixels, file, generator):
  """Writes uint8 [h, w, c] at a random size to `file`, with the ending .png or .jpg."""
  size = int(generator.integers(*SIZES))
  scaled = Image.fromarray(pixels.squeeze()).resize((size, size), Image.Resampling.BICUBIC)
  file.parent.mkdir(parents=True, exist_ok=True)
  scaled.save(f"{file}.png" if generator.random() < 0.5 else f"{file}.jpg")


def make(folder, train, test, photos=3000, of_class=50, tested=1000):
  """Writes the folders.

  Args:
    folder: a `pathlib.Path`.
    train: a labelled `Source`; the first `photos` images are the photos, and of the others the
      first `of_class` of each class are labelled.
    test: the `Source` of the test images.
    photos: the number of photos.
    of_class: the number of labelled images of each class.
    tested: the number of test images, the first ones.
  """
  generator, taken = np.random.default_rng(0), collections.Counter()
  for example in train.epoch(shuffle=False).as_numpy_iterator():
    number, label = example["index"], example["label"]
    if number < photos:
      save(example["image"], folder / "photos" / f"{number:05d}", generator)
    elif taken[label] < of_class:
      taken[label] += 1
      place = folder / "labelled" / "train" / train.class_names[label]
      save(example["image"], place / f"{number:05d}", generator)
  for example in test.epoch(shuffle=False).take(tested).as_numpy_iterator():
    place = folder / "labelled" / "test" / test.class_names[example["label"]]
    save(example["image"], place / f"{example['index']:05d}", generator)


def main():
  """The command line."""
  parser = jobs.Parser(__doc__)
  parser.add_argument("folder", type=pathlib.Path, help="where the folders go")
  parser.add_argument("--dataset", default="cifar10", help="a labelled data set")
  parser.add_argument("--data_dir", help="folder of prepared TFDS data")
  given = parser.parse_args()
  logging.set_verbosity(logging.ERROR)  # TFDS warns of its own code
  train, test = (
    sources.load(given.dataset, split, data_dir=given.data_dir) for split in ("train", "test")
  )
  folder = given.folder.expanduser()
  make(folder, train, test)
  print(f"photos: {folder / 'photos'}\nlabelled images: {folder / 'labelled'}")


if __name__ == "__main__":
  jobs.main(main)

"""Asks a served app about the first images of a file, without TensorFlow or Keras.

python examples/keras_app/ask.py labelled.npz
"""

import argparse
import json
import sys
from urllib import error, request

import numpy as np


def ask(images, url):
  """The predictions for float32 images [n, h, w, c] in [0, 1]."""
  body = json.dumps({"instances": images.tolist()}).encode()
  with request.urlopen(request.Request(url, body)) as reply:
    return json.load(reply)["predictions"]


def read(file):
  """The first five images of a file."""
  try:
    with np.load(file, allow_pickle=False) as data:
      images = data["images"][:5]
  except (OSError, KeyError, TypeError, ValueError) as failure:
    sys.exit(f"cannot read images from {file}: {failure}")
  if images.dtype.kind != "f" or not (images.min() >= 0 and images.max() <= 1):
    sys.exit(f"{file}: images must be floats in [0, 1], got {images.dtype}: divide them by 255")
  return images


def main(file, url):
  """Prints the predicted class of each image, its probability, and the app's uncertainty."""
  images = read(file)
  try:
    answers = ask(images, url)
  except error.HTTPError as failure:
    sys.exit(f"{url} refuses the images of {file}: {failure.read().decode()}")
  except error.URLError as failure:
    sys.exit(f"no answer from {url}: {failure.reason}. Start serve.py first")
  for number, found in enumerate(answers):
    best = int(np.argmax(found["probabilities"]))
    share = found["probabilities"][best]
    print(f"image {number}: class {best} ({share:.0%}), uncertainty {found['uncertainty']:.2f}")


if __name__ == "__main__":
  parser = argparse.ArgumentParser(description="Asks a served app about the first images.")
  parser.add_argument("file", help="an .npz file of images")
  parser.add_argument("url", nargs="?", default="http://localhost:8501/v1/models/app:predict")
  main(**vars(parser.parse_args()))

"""Asks a served app about the first images of a file, without TensorFlow or Keras.

python examples/keras_app/ask.py labelled.npz
"""

import json
import sys
from urllib import request

import numpy as np


def ask(images, url):
  """The predictions for float32 images [n, h, w, c] in [0, 1]."""
  body = json.dumps({"instances": images.tolist()}).encode()
  with request.urlopen(request.Request(url, body)) as reply:
    return json.load(reply)["predictions"]


def main(file, url="http://localhost:8501/v1/models/app:predict"):
  """Prints the predicted class of each image, its probability, and the app's uncertainty."""
  with np.load(file, allow_pickle=False) as data:
    images = data["images"][:5]
  for number, found in enumerate(ask(images, url)):
    best = int(np.argmax(found["probabilities"]))
    share = found["probabilities"][best]
    print(f"image {number}: class {best} ({share:.0%}), uncertainty {found['uncertainty']:.2f}")


if __name__ == "__main__":
  main(*sys.argv[1:])

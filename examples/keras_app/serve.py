"""Serves a SavedModel over HTTP as TensorFlow Serving does, for trials on your own machine.

  python examples/keras_app/serve.py app
  python examples/keras_app/serve.py runs/photos/encoder 8501

A POST to /v1/models/ANY:predict takes {"instances": [image, ...]}, and optionally
"signature_name": "embed". It returns {"predictions": [...]}, with one prediction per image.
"""

import argparse
import contextlib
import json
import os
import sys
from http import server

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import tensorflow as tf


def answer(model, request):
  """The model's reply to a request, in the format of TensorFlow Serving's REST API.

  Args:
    model: what `tf.saved_model.load` returned.
    request: {"instances": images [n, h, w, c] as lists, "signature_name": optional str}.

  Returns:
    {"predictions": [{output: values}]}. If the signature has one output, its values alone.
  """
  signature = model.signatures[request.get("signature_name", "serving_default")]
  ((name, wanted),) = signature.structured_input_signature[1].items()
  images = tf.constant(np.asarray(request["instances"], np.float32))
  if not wanted.shape.is_compatible_with(images.shape):
    raise ValueError(f"wanted images of {wanted.shape}, got {images.shape}")
  found = {key: values.numpy().tolist() for key, values in signature(**{name: images}).items()}
  if len(found) == 1:
    return {"predictions": next(iter(found.values()))}
  rows = zip(*found.values(), strict=True)
  return {"predictions": [dict(zip(found, row, strict=True)) for row in rows]}


def handler(model):
  """A handler class that answers requests with the model."""

  class Handler(server.BaseHTTPRequestHandler):
    def do_POST(self):
      """Replies with JSON. If the request fails, the reply says why."""
      try:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        code, body = 200, answer(model, request)
      except Exception as error:  # any error: report it to the client
        code, body = 400, {"error": str(error)}
      content = json.dumps(body).encode()
      self.send_response(code)
      self.send_header("Content-Type", "application/json")
      self.send_header("Content-Length", str(len(content)))
      self.end_headers()
      self.wfile.write(content)

    def log_message(self, *args):
      """Logs nothing."""

  return Handler


def main(folder, port):
  """Serves until interrupted."""
  try:
    model = tf.saved_model.load(folder)
    listening = server.HTTPServer(("localhost", port), handler(model))
  except (OSError, OverflowError) as error:  # no SavedModel, or a port in use or out of range
    sys.exit(f"cannot serve {folder} on port {port}: {error}")
  with listening, contextlib.suppress(KeyboardInterrupt):
    print(f"http://localhost:{listening.server_port}/v1/models/app:predict", flush=True)
    listening.serve_forever()


if __name__ == "__main__":
  parser = argparse.ArgumentParser(description="Serves a SavedModel over HTTP.")
  parser.add_argument("folder", help="the folder of the SavedModel")
  parser.add_argument("port", type=int, nargs="?", default=8501)
  main(**vars(parser.parse_args()))

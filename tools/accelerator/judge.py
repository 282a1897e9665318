#!/usr/bin/env python3
r"""Measures a ResNet-18 that train.py trained, in PyTorch: it shares no code with the package.

  python judge.py OUT.json --weights student_0.npz student_1.npz --about=student.json \
    --data=IMAGES.tar.xz --autoattack=1000 --seconds=90

A linear head on the clean loc of the training images, its weight decay chosen for what stands
under PGD-10 of training images that were held out, or for their clean accuracy; then, at z = loc,
clean accuracy, PGD-20 at 8/255 and 16/255 on the test images, and the stages of AutoAttack on the
first of them (package pyautoattack, by PYTHONPATH).  No stage starts after this number of seconds.
"""

import argparse
import json
import pathlib
import sys
import time

import arrays
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

_BEGAN = time.time()
_DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
_BATCH = 1000
_DECAYS = (1e-4, 0.01, 0.3, 1.0, 3.0, 10.0)
_STAGES = ("apgd-ce", "apgd-t", "fab-t", "square")  # of AutoAttack's standard version, in order
torch.backends.cuda.matmul.allow_tf32 = False
torch.backends.cudnn.benchmark = True


class Encoder(nn.Module):
  """A `GaussianEncoder` over resnet18 in inference mode, for images of up to 64 pixels.

  Images float [n, c, h, w] in [0, 1] -> (loc, scale), each [n, d].

  Args:
    weights: a list of arrays.
    paths: the names of the encoder's variables, in that order.
    settings: of the training.
  """

  def __init__(self, weights, paths, settings):
    super().__init__()
    self.layers = {}
    for path, array in zip(paths, weights, strict=True):
      layer, name = path.split("/")[-2:]
      self.layers.setdefault(layer, {})[name] = torch.tensor(np.float32(array), device=_DEVICE)
    self.bounds = settings["min_scale"], settings["max_scale"]
    self.sphere = settings.get("loc", "dense").endswith("sphere")
    # A convolution and the batch norm behind it are one convolution with a bias.
    self.folded = {}
    for layer, found in self.layers.items():
      if found.get("kernel", torch.empty(0)).ndim == 4:
        norm = self.layers[layer.replace("_conv", "_norm")]
        factor = norm["gamma"] / torch.sqrt(norm["moving_variance"] + 1e-5)
        kernel = found["kernel"].permute(3, 2, 0, 1) * factor[:, None, None, None]
        bias = norm["beta"] - norm["moving_mean"] * factor
        self.folded[layer] = kernel.contiguous(memory_format=torch.channels_last), bias
    ends = "_conv1"
    self.blocks = sorted(layer.removesuffix(ends) for layer in self.folded if layer.endswith(ends))

  def _conv(self, x, layer, stride=1):
    kernel, bias = self.folded[layer]
    return F.conv2d(x, kernel, bias, stride, kernel.shape[-1] // 2)

  def forward(self, x):
    x = x.contiguous(memory_format=torch.channels_last)
    x = F.relu(self._conv(2 * x - 1, "stem_conv"))
    for block in self.blocks:
      stride = 2 if block.endswith("block1") and not block.startswith("stage1") else 1
      y = F.relu(self._conv(x, f"{block}_conv1", stride))
      y = self._conv(y, f"{block}_conv2")
      if f"{block}_shortcut_conv" in self.folded:
        x = self._conv(x, f"{block}_shortcut_conv", stride)
      x = F.relu(x + y)
    features = loc = x.mean((2, 3))
    if "raw_loc" in self.layers:
      loc = loc @ self.layers["raw_loc"]["kernel"]
    for layer in {"loc", "centred"} & set(self.layers):
      norm = self.layers[layer]
      loc = (loc - norm["moving_mean"]) / torch.sqrt(norm["moving_variance"] + 1e-5)
    if self.sphere:
      length = loc.norm(dim=1, keepdim=True).clamp(min=1e-6)
      loc = loc * loc.shape[1] ** 0.5 / length
    raw = features @ self.layers["raw_scale"]["kernel"] + self.layers["raw_scale"]["bias"]
    least, most = self.bounds
    room = max(most - least, 1e-9)
    scale = least + room * torch.tanh(F.softplus(raw) / room)
    return loc, scale * self.layers["spread"]["kernel"] if "spread" in self.layers else scale


def linear_head(loc, labels, decay, epochs=40):
  """Trains a linear head with AdamW, cosine from 0.01; returns it as a function."""
  size = min(1024, len(loc))
  kernel = torch.zeros(int(labels.max()) + 1, loc.shape[1], device=_DEVICE, requires_grad=True)
  bias = torch.zeros(len(kernel), device=_DEVICE, requires_grad=True)
  optimizer = torch.optim.AdamW([kernel, bias], 0.01, weight_decay=decay)
  schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * (len(loc) // size))
  for _ in range(epochs):
    order = torch.randperm(len(loc), device=_DEVICE)
    for rows in order[: len(loc) // size * size].split(size):
      optimizer.zero_grad()
      F.cross_entropy(F.linear(loc[rows], kernel, bias), labels[rows]).backward()
      optimizer.step()
      schedule.step()
  return lambda z: F.linear(z, kernel.detach(), bias.detach())


def right(function, images, labels):
  """Which images are classified rightly, bool [n]."""
  with torch.no_grad():
    parts = zip(images.split(_BATCH), labels.split(_BATCH))
    return torch.cat([function(x).argmax(1) == y for x, y in parts])


def pgd(function, images, labels, epsilon, steps, size):
  """Which images are right, and still are after PGD (l_inf) from a random start, bool [n]."""
  found = []
  for x, y in zip(images.split(_BATCH), labels.split(_BATCH)):
    moved = (x + torch.empty_like(x).uniform_(-epsilon, epsilon)).clamp(0, 1)
    for _ in range(steps):
      moved.requires_grad_(True)
      loss = F.cross_entropy(function(moved), y, reduction="sum")
      (gradient,) = torch.autograd.grad(loss, moved)
      moved = moved.detach() + size * gradient.sign()
      moved = torch.min(torch.max(moved, x - epsilon), x + epsilon).clamp(0, 1)
    found.append(right(function, x, y) & right(function, moved, y))
  return torch.cat(found)


def effective_rank(loc):
  """tr(C)^2 / tr(C^2) of the covariance of loc [n, d]."""
  centred = loc - loc.mean(0)
  eigenvalues = torch.linalg.eigvalsh(centred.T @ centred)
  return float(eigenvalues.sum() ** 2 / (eigenvalues**2).sum())


def autoattack(classifier, images, labels, stages, seconds):
  """The stages of the official AutoAttack at 8/255, each on what stands after those before it.

  Args:
    classifier: images float [n, c, h, w] -> logits.
    images: on the device.
    labels: of them.
    stages: names of stages, in order.
    seconds: from the start of this command on, after which no stage is begun.

  Yields:
    What stands after each stage, a share of the images, with the seconds of the stage and the
    largest change of a pixel in units of 1/255, a dict.
  """
  from pyautoattack import AutoAttack

  stands = right(classifier, images, labels)
  for name in stages:
    began = time.time()
    if began - _BEGAN > seconds or not stands.any():
      return
    attack = AutoAttack(
      classifier, norm="Linf", eps=8 / 255, version="standard", device=_DEVICE, seed=0
    )
    attack.attacks_to_run = [name]
    x, y = images[stands].contiguous(), labels[stands]
    moved = attack.run_standard_evaluation(x, y, batch_size=_BATCH)
    moved = moved[0] if isinstance(moved, tuple) else moved
    after = stands.clone()
    after[stands] = right(classifier, moved, y)
    stands = after
    yield {
      "stage": name,
      "stands": float(stands.float().mean()),
      "seconds": round(time.time() - began, 1),
      "largest_change": float((moved - x).abs().max() * 255),
    }


def judge(encoder, data, say, select="robust", attacked=0, stages=_STAGES, seconds=float("inf")):
  """Measures an encoder.

  Args:
    encoder: images [n, c, h, w] -> (loc, scale).
    data: as `arrays.read_images` gives it, with splits train and test.
    say: is called with what has been found so far, a dict, whenever that is more.
    select: what the head's weight decay is chosen for, "robust" or "clean".
    attacked: how many test images AutoAttack attacks.
    stages: its stages.
    seconds: from the start of this command on, after which no stage of it is begun.
  """
  prepare = lambda images: torch.tensor(images, device=_DEVICE).permute(0, 3, 1, 2).float() / 255  # noqa: E731
  train, test = prepare(data["train_images"]), prepare(data["test_images"])
  labels, answers = (
    torch.tensor(data[f"{split}_labels"], device=_DEVICE).long() for split in ("train", "test")
  )
  with torch.no_grad():
    encoded = [encoder(images) for images in train.split(_BATCH)]
    loc, scale = (torch.cat(parts) for parts in zip(*encoded))
    seen = torch.cat([encoder(images)[0] for images in test.split(_BATCH)])
  found = {
    "device": torch.cuda.get_device_name() if _DEVICE == "cuda" else "cpu",
    "images": [len(train), len(test)],
    "scale": [float(scale.min()), float(scale.mean()), float(scale.max())],
    "effective_rank": effective_rank(seen),
  }
  on_images = lambda head: lambda images: head(encoder(images)[0])  # noqa: E731
  share = lambda flags: float(flags.float().mean())  # noqa: E731
  kept = len(loc) * 9 // 10
  held, known = train[kept:][:_BATCH], labels[kept:][:_BATCH]
  chosen = {}
  for decay in _DECAYS:
    head = linear_head(loc[:kept], labels[:kept], decay)
    clean = share(right(head, loc[kept:], labels[kept:]))
    stands = share(pgd(on_images(head), held, known, 8 / 255, 10, 2 / 255))
    found[f"validation, weight decay {decay}"] = [clean, stands]
    chosen[decay] = stands if select == "robust" else clean
  found["weight_decay"] = max(chosen, key=chosen.get)
  head = linear_head(loc, labels, found["weight_decay"])
  classifier = on_images(head)
  found["clean"] = share(right(head, seen, answers))
  say(found)
  for radius in (8, 16):
    stands = pgd(classifier, test, answers, radius / 255, 20, radius / 4 / 255)
    found[f"pgd20_{radius}"] = share(stands)
    say(found)
  if attacked:
    found["autoattack"] = {"images": attacked, "stages": []}
    for stage in autoattack(classifier, test[:attacked], answers[:attacked], stages, seconds):
      found["autoattack"]["stages"].append(stage)
      say(found)


def main():
  """The command line."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("out", type=pathlib.Path, help="the JSON file to write")
  parser.add_argument("--weights", nargs="+", required=True, help="the encoder's parts, .npz")
  parser.add_argument("--about", type=pathlib.Path, required=True, help="NAME.json beside them")
  parser.add_argument("--data", required=True, help="as for train.py")
  parser.add_argument("--train", type=int, help="how many training images; default: all")
  parser.add_argument("--test", type=int, help="how many test images; default: all")
  parser.add_argument("--select", choices=("robust", "clean"), default="robust", help="of decay")
  parser.add_argument("--autoattack", type=int, default=0, help="how many test images it attacks")
  parser.add_argument("--stages", nargs="+", choices=_STAGES, default=_STAGES, help="of AutoAttack")
  parser.add_argument("--seconds", type=float, default=float("inf"), help="no stage begins later")
  options = parser.parse_args()
  about = json.loads(options.about.read_text())
  if not about["settings"]["encoder"].startswith("resnet18"):
    sys.exit(f"error: {about['settings']['encoder']} is no resnet18")
  weights = arrays.read_weights(options.weights)
  encoder = Encoder(weights, about["encoder_paths"], about["settings"])
  limits = {"train": options.train, "test": options.test}
  data = {
    name: rows[: limits.get(name.partition("_")[0])]
    for name, rows in arrays.read_images(options.data).items()
  }

  def say(found):
    found["seconds"] = round(time.time() - _BEGAN, 1)
    options.out.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found), flush=True)

  judge(encoder, data, say, options.select, options.autoattack, options.stages, options.seconds)


if __name__ == "__main__":
  main()

#!/usr/bin/env python3
"""Images a second of the package's steps, written again in PyTorch: python peer.py [--seconds=20].

ResNet-18, two views of random images without augmentation: SimCLR, and SimCLR with the KL of
PGD-5 adversaries; bfloat16 autocast, channels last, with and without torch.compile.
"""

import argparse
import json
import time

import torch
from torch import nn
from torch.nn import functional as F

_DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
torch.backends.cudnn.benchmark = True
torch.set_float32_matmul_precision("high")


class _Block(nn.Module):
  def __init__(self, channels, width, stride):
    super().__init__()
    self.conv1 = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
    self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
    self.norm1, self.norm2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
    self.shortcut = nn.Identity()
    if stride > 1 or channels != width:
      conv = nn.Conv2d(channels, width, 1, stride, bias=False)
      self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(width))

  def forward(self, x):
    y = F.relu(self.norm1(self.conv1(x)))
    return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class _Encoder(nn.Module):
  def __init__(self, width):
    super().__init__()
    layers = [nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    channels = width
    for factor in (1, 2, 4, 8):
      layers += [_Block(channels, factor * width, min(factor, 2))]
      layers += [_Block(factor * width, factor * width, 1)]
      channels = factor * width
    self.layers, self.heads = nn.Sequential(*layers), nn.Linear(channels, 2 * channels)

  def forward(self, x):
    loc, raw = self.heads(self.layers(x).mean((2, 3))).float().chunk(2, -1)
    return loc, F.softplus(raw) + 0.01


def kl(p, q):
  """KL[p || q] of (loc, scale) and (loc, scale), float [n]."""
  (loc, scale), (other, width) = p, q
  square = (scale**2 + (loc - other) ** 2) / (2 * width**2)
  return (torch.log(width / scale) + square - 0.5).sum(-1)


def nt_xent(z, count, temperature=0.5):
  """NT-Xent of [views * count, d], view after view; every other view of an image is a positive."""
  z = F.normalize(z, dim=1)
  logits, ids = z @ z.T / temperature, torch.arange(len(z), device=z.device) % count
  same = ids[:, None] == ids
  others = same & ~torch.eye(len(z), dtype=torch.bool, device=z.device)
  negatives = torch.logsumexp(logits.masked_fill(same, -1e9), 1, keepdim=True)
  return (negatives - logits)[others].mean()


def make_step(batch, width, attack_steps, compiled):
  """A function that takes a step of SimCLR, with Urkle if there are attack steps."""
  encoder = _Encoder(width).to(_DEVICE, memory_format=torch.channels_last)
  d = 8 * width
  projector = nn.Sequential(nn.Linear(d, d), nn.ReLU(), nn.Linear(d, 128)).to(_DEVICE)
  parameters = [*encoder.parameters(), *projector.parameters()]
  optimizer = torch.optim.SGD(parameters, 0.1, 0.9)
  images = torch.rand(2 * batch, 3, 32, 32, device=_DEVICE)
  images = images.to(memory_format=torch.channels_last)

  def forward(x):
    with torch.autocast(_DEVICE, torch.bfloat16):
      return encoder(x)

  forward = torch.compile(forward) if compiled else forward

  def adversaries():
    encoder.eval()
    with torch.no_grad():
      clean = forward(images)
    moved = (images + torch.empty_like(images).uniform_(-8 / 255, 8 / 255)).clamp(0, 1)
    for _ in range(attack_steps):
      moved.requires_grad_(True)
      (gradient,) = torch.autograd.grad(kl(clean, forward(moved)).sum(), moved)
      moved = moved.detach() + 2 / 255 * gradient.sign()
      moved = torch.min(torch.max(moved, images - 8 / 255), images + 8 / 255).clamp(0, 1)
    return moved

  def step():
    x = torch.cat([images, adversaries()]) if attack_steps else images
    encoder.train()
    loc, scale = forward(x)
    loss = nt_xent(projector(loc + scale * torch.randn_like(scale)), batch)
    if attack_steps:
      (loc, other), (scale, width) = loc.chunk(2), scale.chunk(2)
      loss = loss + 0.01 * kl((loc, scale), (other, width)).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()  # waits for the device

  return step


def main():
  """Prints a JSON object for each step."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--seconds", type=float, default=20, help="time each for so long")
  parser.add_argument("--batch", type=int, default=512, help="images a step")
  parser.add_argument("--width", type=int, default=64, help="of the ResNet-18")
  parser.add_argument("--compile", action=argparse.BooleanOptionalAction, help="default: both")
  options = parser.parse_args()
  for compiled in (False, True) if options.compile is None else (options.compile,):
    for attack_steps in (0, 5):
      began = time.time()
      step = make_step(options.batch, options.width, attack_steps, compiled)
      for _ in range(3):
        step()
      row = {"attack_steps": attack_steps, "compile": compiled, "warm_up": time.time() - began}
      began, count = time.time(), 0
      while time.time() - began < options.seconds:
        row["loss"] = step()
        count += 1
      row["images_per_second"] = count * options.batch / (time.time() - began)
      print(json.dumps(row), flush=True)


if __name__ == "__main__":
  main()

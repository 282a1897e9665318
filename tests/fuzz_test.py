"""Anything that people may type, lay in a folder or hand over ends in a result or in one line."""

import io

import hypothesis
import numpy as np
from hypothesis import strategies as st
from PIL import Image

from urkle_tf import attacks, errors, pretexts, robustness, spec
from urkle_tf.data import augment, folders, labellings, sources, splits
from urkle_tf.evaluation import plans

# A loaded machine may take long; each example makes its own files.
HEALTH = hypothesis.HealthCheck
UNHURRIED = {"suppress_health_check": [HEALTH.function_scoped_fixture, HEALTH.too_slow]}
few = lambda count: hypothesis.settings(max_examples=count, deadline=None, **UNHURRIED)  # noqa: E731

# What is written on command lines, and what comes close to it.
PARTS = st.sampled_from(
  [
    *("urkle", "simclr", "acl", "crop", "pgd", "beta", "form", "ds", "train", "linf", "mnist"),
    *("(", ")", "=", ",", "[", "]", ":", "%", "+", "-", "/", "'", '"', " ", "#", "\n", "\0"),
    *("0.1", "8/255", "1e999", "-1", "nan", "true", "None", "__import__('os')", "猫", "\ud800"),
  ]
)
TEXTS = st.lists(PARTS, max_size=9).map("".join) | st.text(max_size=20)


def outcome(call, *arguments):
  """(what a call returned, None), or (None, what it said): in a `UserError` that is no page."""
  try:
    return call(*arguments), None
  except errors.UserError as error:
    said = str(error)
  except ValueError as error:
    assert call is spec.number  # which absl calls, and puts into words
    said = str(error)
  assert 0 < len(said) < 2000
  return None, said


@few(150)
@hypothesis.given(TEXTS)
def test_specs(text):
  parsed, _ = outcome(spec.parse, text)
  if parsed:
    name, options = parsed
    assert name in text
    assert all(isinstance(v, (int, float, str, bool, type(None))) for v in options.values())
  for call in (spec.split, spec.number, augment.from_spec, labellings.split):
    outcome(call, text)
  outcome(spec.build, "pretexts", text, pretexts.Pretext)
  outcome(spec.build, "robustness", text, robustness.Robustness)
  outcome(plans.read, text, attacks.Linf(0.1))


@few(100)
@hypothesis.given(TEXTS, st.integers(0, 40))
def test_splits(text, size):
  outcome(splits.select, "digits", text, {"train": size, "test": 7})


# --- Images and folders ---


def images():
  rng, made = np.random.default_rng(0), []
  for kind, mode in (("PNG", "RGB"), ("PNG", "P"), ("JPEG", "L"), ("JPEG", "CMYK")):
    stream = io.BytesIO()
    pixels = Image.fromarray(rng.integers(0, 256, (9, 7, 3), np.uint8)).convert(mode)
    pixels.save(stream, kind)
    made.append(stream.getvalue())
  return made


@few(250)
@hypothesis.given(
  content=st.sampled_from(images()) | st.binary(max_size=60),
  changes=st.lists(st.tuples(st.integers(0, 10**4), st.integers(0, 255)), max_size=6),
  cut=st.none() | st.integers(0, 300),
)
def test_damaged_images(tmp_path_factory, content, changes, cut):
  file = tmp_path_factory.getbasetemp() / "fuzzed.png"
  content = bytearray(content)
  for where, value in changes:
    if content:
      content[where % len(content)] = value
  file.write_bytes(content[:cut])
  pixels, said = outcome(folders.decode, file, (4, 5, 3))
  if said is None:
    assert (pixels.shape, pixels.dtype) == ((4, 5, 3), np.uint8)
  else:
    assert str(file) in said
    assert "\n" not in said


COLOURS = {"cats": 40, "dogs": 90, "猫": 140, "a b": 190, "train": 230}
PLACES = st.sampled_from([*COLOURS, "", "cats/inner", "train/cats", "test/cats", "test/dogs", ".x"])
THINGS = st.sampled_from(["image", "image", "image", "text", "empty", "link", "folder", "circle"])


@few(60)
@hypothesis.given(things=st.lists(st.tuples(PLACES, THINGS), max_size=9))
def test_folders_of_anything(tmp_path_factory, things):
  """No image gets another class than the folder that it lies in."""
  root = tmp_path_factory.mktemp("folder")
  for number, (place, kind) in enumerate(things):
    here = root / place
    here.mkdir(parents=True, exist_ok=True)
    name = next((part for part in reversed(place.split("/")) if part in COLOURS), "")
    file = here / f"{number}.png"
    if kind == "image":
      Image.new("L", (4, 4), COLOURS.get(name, 9) + number).save(file)
    elif kind in ("text", "empty"):
      (here / f"{number}.txt").write_text("x" * (kind == "text"))
    elif kind == "link":
      file.symlink_to(here / "0.png")
    elif kind == "folder":
      file.mkdir()
    else:
      (here / f"again{number}").symlink_to(root)
  source, said = outcome(sources.load, f"folder:{root}", "all")
  if said is not None:
    assert "\n" not in said
    return
  assert source.size == len(source.images) > 0
  if source.class_names:
    for image, label in zip(source.images, source.labels, strict=True):
      # Beside a folder named train, cats is another split, and inner a class.
      name = source.class_names[label]
      assert name == "inner" or 0 <= int(image[0, 0, 0]) - COLOURS[name] < 10

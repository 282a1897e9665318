"""Accuracy on corrupted images against cases with a known answer, and plain loops."""

import numpy as np
import pytest
from cases import refuses
from small_models import array_source

from urkle_tf import errors
from urkle_tf.evaluation import calibration, corrupted, corruptions
from urkle_tf.evaluation.measurements.corruptions import Corruptions
from urkle_tf.evaluation.report import document


def flat_source(levels):
  """Images of one grey each; the class says whether it is above a half."""
  levels = np.asarray(levels)
  images = np.broadcast_to(levels[:, None, None, None], (len(levels), 32, 32, 1)).astype(np.uint8)
  return array_source(images, (levels > 127).astype(np.int64))


def light_meter(steepness):
  """Says whether an image is lighter than a half, by its mean, in two modes."""

  def score(images):
    logit = steepness * (images.mean((1, 2, 3), dtype=np.float64) - 0.5)
    values = np.stack([-np.logaddexp(0, logit), -np.logaddexp(0, -logit)], 1).astype(np.float32)
    return {"sampled": values, "deterministic": values[:, ::-1]}  # the second is always wrong

  return score


def test_the_accuracy_of_a_light_meter_has_a_closed_form():
  levels = np.arange(0, 250, 5)  # 26 dark ones
  source = flat_source(levels)
  found = corrupted.plan("brightness, contrast,brightness", None, source)
  assert found.cells == [(n, s) for n in ("brightness", "contrast") for s in range(1, 6)]
  part = corrupted.measure(light_meter(30.0), source, found, batch_size=16)
  # A dark image is taken for a light one if what is added carries it over a half.
  wanted = {}
  for severity, amount in enumerate((0.05, 0.1, 0.15, 0.2, 0.3), 1):
    lost = np.sum((levels <= 127) & (levels / 255 + amount > 0.5))
    wanted[str(severity)] = 1 - lost / len(levels)
  brightness, contrast = part["by_type"]["brightness"], part["by_type"]["contrast"]
  assert {s: row["accuracy"] for s, row in brightness["severities"].items()} == wanted
  assert wanted["5"] < wanted["1"] - 0.2
  # Contrast leaves the mean as it is.
  assert {row["accuracy"] for row in contrast["severities"].values()} == {1.0}
  mean = (np.mean(list(wanted.values())) + 1) / 2
  assert part["mean"] == pytest.approx(mean)
  assert part["mean_corruption_error"] == pytest.approx(1 - mean)
  for severity, row in part["by_severity"].items():
    assert row["accuracy"] == pytest.approx((wanted[severity] + 1) / 2)
  low, high = part["interval"]
  assert low < mean < high
  assert [low, high] == pytest.approx(calibration.wilson(mean * 50, 50))
  assert (part["mode"], part["examples"], part["origin"]) == ("sampled", 50, "computed")
  assert (part["constants"], part["types"]) == ("CIFAR-10-C", ["brightness", "contrast"])
  assert part["severities"] == ["1", "2", "3", "4", "5"]
  assert part["deterministic"]["mean"] == pytest.approx(1 - mean)  # the other mode has its own


def test_scores_are_those_of_a_plain_loop(rng):
  source = flat_source(rng.integers(256, size=40))
  score = light_meter(4.0)
  found = corrupted.plan("fog,gaussian_noise,jpeg_compression", [1, 5], source)
  part = corrupted.measure(score, source, found, batch_size=7, seed=5)
  whole = corrupted.measure(score, source, found, batch_size=40, seed=5)
  assert part["mean"] == whole["mean"]  # whatever the batch
  assert part["nll"] == pytest.approx(whole["nll"], rel=1e-6)
  images = source.images.astype(np.float32) / 255
  cells, eces, everything = [], [], []
  for kind in ("fog", "gaussian_noise", "jpeg_compression"):
    for severity in (1, 5):
      noisy = corruptions.corrupt(images, kind, severity, np.arange(40), 5)
      values = score(noisy)["sampled"]
      row = part["by_type"][kind]["severities"][str(severity)]
      wanted = calibration.scores(values, source.labels)
      for name in ("accuracy", "nll", "ece", "brier"):
        assert row[name] == pytest.approx(wanted[name], rel=1e-5, abs=1e-7)
      assert row["interval"] == wanted["interval"]
      cells.append(wanted["accuracy"])
      eces.append(wanted["ece"])
      everything += list(zip(values, source.labels, strict=True))
  assert part["mean"] == pytest.approx(np.mean(cells))
  assert part["ece"] == pytest.approx(np.mean(eces), rel=1e-5)
  assert_reliability(part["reliability"], everything)


def assert_reliability(bins, examples):
  """Checks a reliability diagram's data against one example after the other."""
  groups: dict[int, list] = {number: [] for number in range(15)}
  for values, label in examples:
    confidence = float(np.exp(max(values)))
    groups[min(int(confidence * 15), 14)].append((confidence, np.argmax(values) == label))
  for number, group in groups.items():
    assert bins["count"][number] == len(group)
    if group:
      assert bins["confidence"][number] == pytest.approx(np.mean([c for c, _ in group]), rel=1e-5)
      assert bins["accuracy"][number] == pytest.approx(np.mean([right for _, right in group]))


def test_sums_of_bins_add_up(rng):
  logits = rng.normal(size=(100, 4)) * 2
  values = logits - np.logaddexp.reduce(logits, 1, keepdims=True)
  labels = rng.integers(4, size=100)
  parts = [calibration.binned(values[rows], labels[rows]) for rows in np.split(np.arange(100), 4)]
  assert calibration.ece_of(sum(parts)) == pytest.approx(calibration.scores(values, labels)["ece"])
  found = calibration.reliability(sum(parts))
  assert sum(found["count"]) == 100
  assert_reliability(found, list(zip(values, labels, strict=True)))


@pytest.mark.parametrize(
  "text, severities, message",
  [
    ("fogg", None, "unknown corruption 'fogg'; did you mean 'fog'"),
    ("", None, "give --corruptions: all, tfds, or names"),
    ("fog,all", None, "'all' must be given alone"),
    ("fog", [0], "numbers from 1 to 5, got 0"),
    ("fog", [1.5], "numbers from 1 to 5, got 1.5"),
    ("tfds", None, "TFDS has no corrupted images of 'grey'"),
  ],
)
def test_mistakes_are_one_line(text, severities, message):
  refuses(message, corrupted.plan, text, severities, flat_source([1, 2]))


def test_all_are_the_fifteen():
  found = corrupted.plan("all", [3, 1, 3], flat_source([1, 2]))
  assert found.cells == [(name, severity) for name in corruptions.NAMES for severity in (1, 3)]


# Prepared by TFDS.


def test_the_configurations_are_matched_with_our_names():
  found = corrupted._configs("cifar10_corrupted", [1, 5])
  assert list(found) == [(name, severity) for name in corruptions.NAMES for severity in (1, 5)]
  assert found["glass_blur", 5] == "frosted_glass_blur_5"
  assert found["elastic_transform", 1] == "elastic_1"
  found = corrupted._configs("mnist_corrupted", [1])
  assert len(found) == 15
  assert found["zigzag", None] == "zigzag"
  assert ("identity", None) not in found


def test_what_is_not_prepared_is_one_line(tmp_path):
  source = flat_source([1, 2])
  source.name = "mnist"
  words = "'mnist_corrupted/ & ' is not prepared"
  refuses(words, corrupted.plan, "tfds", None, source, data_dir=str(tmp_path))


def test_prepared_images_are_scored(monkeypatch, capsys):
  levels = np.arange(0, 250, 10)
  source = flat_source(levels)
  source.name = "cifar10:3.0.2:lightness"
  prepared = {"fog_1": levels, "fog_2": levels, "frosted_glass_blur_2": levels}
  asked = []

  def find(name, split, data_dir, download, image_size, examples):
    asked.append((name, split, data_dir, download, image_size, examples))
    if name.split("/")[1] not in prepared:
      raise errors.UserError(f"{name} is not prepared")

  def load(name, *_, **__):
    name, labelling = name.split(":")  # labels as the clean images'
    assert labelling == "lightness"
    loaded = flat_source(prepared[name.split("/")[1]])
    loaded.labels = loaded.labels if name.endswith("_2") else 1 - loaded.labels
    return loaded

  monkeypatch.setattr(corrupted.named, "find", find)
  monkeypatch.setattr(corrupted.sources, "load", load)
  where = {"data_dir": "data", "download": False, "image_size": 32, "examples": 25}
  found = corrupted.plan("tfds", [1, 2], source, **where)
  assert asked[0] == ("cifar10_corrupted/gaussian_noise_1", "test", "data", False, 32, 25)
  assert found.cells == [("glass_blur", 2), ("fog", 1), ("fog", 2)]
  assert len(found.missing) == 27
  assert capsys.readouterr().out.startswith("not prepared, and left out: cifar10_corrupted/")

  part = corrupted.measure(light_meter(20.0), source, found, batch_size=10)
  # Each source brings its own labels, and those of fog_1 are wrong.  First a type's severities
  # are averaged, then the types: the mean of the three would be 2/3.
  assert part["by_type"]["fog"]["accuracy"] == 0.5
  assert part["mean"] == 0.75
  assert part["by_severity"]["1"]["accuracy"] == 0
  assert part["origin"] == "cifar10_corrupted"
  assert part["severities"] == ["1", "2"]
  assert set(part["by_type"]["glass_blur"]["severities"]) == {"2"}
  assert len(part["missing"]) == 27
  text = document.markdown(Corruptions().render(part, {}))
  assert "| glass_blur | - | 100.00 | 100.00 (" in text
  assert "| fog | 0.00 | 100.00 | 50.00 (" in text
  assert "| **mean** | 0.00 | 100.00 | 75.00 (" in text

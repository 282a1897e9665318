"""Certificates in a report: smoothing of classifiers and encoders, and the certified KL."""

import json
import math
import types

import pytest
from cases import refuses
from small_models import tiny_encoder

import urkle_tf
from urkle_tf.evaluation.measurements.certificate import Certificate

DATA = {"dataset": "digits", "split": "test", "examples": 12}


def assessed(exported, measure, output=None, **more):
  options = {"attacks": "fgsm", "checks": False, "representation_examples": 0, **DATA, **more}
  place = output and str(output)
  return urkle_tf.assess(str(exported / "sampled"), measure=measure, output_dir=place, **options)


@pytest.mark.full
def test_certificates_of_a_classifier_are_in_its_report(exported, tmp_path):
  specs = ['smoothing(noise=0.1, samples=200, radii="0,0.05,0.1", examples=8)']
  specs.append("certificate(loss_cap=5, examples=6, steps=5)")
  report = assessed(exported, specs, tmp_path / "report")
  part = report["smoothing"]
  accuracies = [row["accuracy"] for row in part["certified"]]
  assert accuracies == sorted(accuracies, reverse=True)
  assert 0 <= part["abstained"] <= 1 - accuracies[0]

  kl = report["certificate"]
  assert [row["epsilon"] for row in kl["rows"]] == [0.1 / 10**power for power in range(4)]
  for row in kl["rows"]:
    assert row["found"] <= row["kl"]
    assert row["value"] == pytest.approx(kl["clean_loss"] + 5 * math.sqrt(row["kl"] / 2))
    assert row["vacuous"] == (row["value"] >= 5)
  tighter = 'certificate(examples=6, epsilons="0.1,0.0001", bounds=linear)'
  lines = assessed(exported, None, certify=tighter)["certificate"]
  for epsilon, row in zip((0, 3), lines["rows"], strict=True):
    wide = kl["rows"][epsilon]
    assert wide["found"] <= row["kl"] < 0.9 * wide["kl"]
  page = (tmp_path / "report" / "report.md").read_text()
  assert "## Certified KL" in page
  assert (tmp_path / "report" / "figures" / "certified.png").exists()
  assert json.loads((tmp_path / "report" / "report.json").read_text())["smoothing"] == part


def test_an_encoder_alone_is_certified_in_cosines(exported):
  measure = ["smoothing(noise=0.1, samples=300, radii=0, examples=3)", "certificate(examples=3)"]
  options = {"norm": "linf", "epsilon": 0.1, "representation_examples": 0, **DATA}
  report = urkle_tf.assess(encoder=str(exported / "encoder"), measure=measure, **options)
  assert -1 <= report["smoothing"]["cosines"][0]["mean"] <= 1
  assert "value" not in report["certificate"]["rows"][0]


@pytest.mark.parametrize(
  "measure, more, message",
  [
    ("smoothing(noise=0)", {}, "noise must be above 0, got 0"),
    ("smoothing(examples=0)", {}, "examples must be above 0, got 0"),
    ("smoothing(alpha=2)", {}, "smoothing: alpha must be in (0, 1), got 2"),
    ("smoothing(radii=-1)", {}, "radii must be at least 0"),
    ("certificate(examples=0)", {}, "examples must be above 0"),
    ("certificate(steps=0)", {}, "certificate: steps must be above 0, got 0"),
    ("certificate(alpha=0)", {}, "certificate: alpha must be in (0, 1), got 0"),
    ("certificate(bounds=crown)", {}, "unknown kind of bounds 'crown'"),
    ("certificate", {"certify": "certificate"}, "names certificate twice"),
    ("certificate", {"norm": "l2", "epsilon": 0.5}, "not in l2"),
    ("certificate(loss_cap=1)", {}, "above ln"),
  ],
)
def test_options_that_certify_nothing_end_in_one_line(exported, measure, more, message):
  refuses(message, assessed, exported, measure, **more)


@pytest.mark.parametrize(
  ("epsilon", "said"), [(8.0, "write 8/255"), (-0.1, "at least 0, got -0.1")]
)
def test_radii_are_checked_before_the_attacks_run(epsilon, said):
  context = types.SimpleNamespace(norm="linf", metadata={"stochastic": True})
  refuses(said, Certificate(epsilons=[0.1, epsilon]).prepare, context)
  Certificate(epsilons=[0.1, 8 / 255]).prepare(context)


def test_a_certified_kl_that_is_not_finite_ends_in_one_line(tmp_path):
  encoder = tiny_encoder()
  for kernel in encoder.trainable_variables:
    kernel.assign(1e6 * kernel)  # squares overflow
  options = {"norm": "linf", "epsilon": 0.1, "representation_examples": 0, **DATA}
  folder = urkle_tf.export_encoder(encoder, tmp_path / "wide")
  message = "at epsilon 0.1 the bound of the KL is not finite"
  refuses(message, urkle_tf.assess, encoder=folder, measure="certificate(examples=1)", **options)

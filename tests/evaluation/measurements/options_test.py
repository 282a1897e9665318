"""Measurements are found by their names; their options are read without TensorFlow."""

import sys

import commands
import pytest
from cases import refuses

from urkle_tf import settings
from urkle_tf.evaluation import measurements
from urkle_tf.evaluation.measurements.bound import Bound
from urkle_tf.evaluation.measurements.corruptions import Corruptions
from urkle_tf.evaluation.measurements.representation import Representation


def chosen(kind="classifier", **given):
  return {one.name: one for one in measurements.chosen(settings.Assess(**given), kind)}


def test_what_a_report_has_by_default():
  assert list(chosen()) == ["clean", "attacks", "checks", "representation"]
  assert list(chosen("foreign")) == ["clean", "attacks", "checks"]
  assert list(chosen("encoder")) == ["representation"]
  assert list(chosen("regressor")) == ["regression"]
  asked = {"corruptions": "fog", "loss_cap": 4.0, "checks": False, "representation_examples": 0}
  assert list(chosen(**asked)) == ["clean", "attacks", "corruptions", "bound"]
  assert list(chosen("encoder", loss_cap=4.0)) == ["representation"]


def test_flags_are_aliases_of_options():
  flags = {"corruptions": "fog", "severities": [1.0, 3.0], "loss_cap": 4.0, "checks": False}
  flags |= {"attacks": "fgsm,pgd(steps=3)", "attack_steps": 5, "standing": True}
  by_flags = chosen(representation_examples=7, **flags)
  specs = ['corruptions(types=fog, severities="1,3")', "bound(loss_cap=4.0)", "checks(examples=0)"]
  specs.append("representation(examples=7, loss_cap=4.0)")
  specs.append('attacks(attacks="fgsm,pgd(steps=3)", steps=5, standing=true)')
  assert chosen(measure=specs) == by_flags
  assert "checks" not in by_flags
  assert by_flags["corruptions"] == Corruptions("fog", [1.0, 3.0])
  assert by_flags["bound"] == Bound(loss_cap=4.0, steps=100)


def test_a_spec_adds_a_measurement_or_sets_what_no_flag_does():
  found = chosen(measure="corruptions(severities=2),representation(steps=3)", severities=[1.0])
  assert list(found) == ["clean", "attacks", "checks", "corruptions", "representation"]
  assert found["corruptions"] == Corruptions(None, [2])  # the spec is more than the flag
  assert found["representation"] == Representation(examples=1000, steps=3)
  assert list(chosen(measure="checks", checks=False)) == list(chosen())


@pytest.mark.parametrize(
  "measure, message",
  [
    ("corruption", "unknown measurement 'corruption'; did you mean 'corruptions'? & : against, at"),
    ("bound(steps=3, loss_cp=4)", "unknown option of bound 'loss_cp'; did you mean 'loss_cap'?"),
    ("bound(steps=many)", "bound: steps must be an integer of at least 0, got 'many'"),
    ("bound(steps=true)", "bound: steps must be an integer of at least 0, got True"),
    ("bound(loss_cap=high)", "bound: loss_cap must be a number, got 'high'"),
    ("corruptions(types=3)", "corruptions: types must be text, got 3"),
    ('corruptions(severities="1,x")', "severities must be numbers separated by commas"),
    ("attacks(standing=1)", "attacks: standing must be true or false, got 1"),
    ("bound(loss_cap=4),bound(steps=3)", "--measure names bound twice"),
    ("regression", "regression is for a regressor, and this model is a classifier of"),
    ("bound(steps=3", "cannot read 'bound"),
  ],
)
def test_mistakes_are_one_line(measure, message):
  refuses(message, chosen, measure=measure)


@pytest.mark.parametrize(
  ("kind", "given", "message"),
  [
    ("encoder", {"corruptions": "fog"}, "--corruptions needs a prediction"),
    ("foreign_encoder", {"corruptions": "fog"}, "--corruptions needs a prediction"),
    ("foreign", {"loss_cap": 4.0}, "this package's models: leave out --loss_cap"),
    ("foreign_encoder", {"loss_cap": 4.0}, "this package's models: leave out --loss_cap"),
  ],
)
def test_a_flag_that_a_model_cannot_use_is_not_left_out_in_silence(kind, given, message):
  refuses(message, chosen, kind, **given)


@pytest.mark.parametrize("flag", ["measure", "certify"])
def test_the_command_finds_a_mistake_before_it_starts_tensorflow(flag):
  words = ["--classifier=nowhere", "--output_dir=nowhere", f"--{flag}=bound(stepz=3)"]
  command = [sys.executable, "-X", "importtime", "-m", "urkle_tf.evaluate", *words]
  lines = commands.process(*command, code=2).stderr.splitlines()
  (said,) = (line for line in lines if not line.startswith("import time:"))
  assert said.startswith("error: unknown option of bound 'stepz'; did you mean 'steps'?")
  # What another module imports is indented.
  loaded = {line.rpartition("|")[2].strip() for line in lines}
  assert {"urkle_tf.settings", "urkle_tf.evaluation.measurements"} <= loaded
  assert "tensorflow" not in loaded

"""What an evaluation measures, one module each: a new one is a new file, found by its name."""

import dataclasses

from urkle_tf import errors, spec
from urkle_tf.evaluation.measurements.base import Measurement

_PACKAGE = "evaluation.measurements"
_KINDS = {
  "classifier": "a classifier of this package",
  "foreign": "a classifier made elsewhere",
  "encoder": "an encoder",
  "foreign_encoder": "an encoder made elsewhere",
  "regressor": "a regressor",
}


def known():
  """All measurements, with their default options, in the report's order."""
  found = [spec.build(_PACKAGE, name, Measurement) for name in spec.names(_PACKAGE)]
  return sorted(found, key=lambda one: (one.place, one.name))


def in_report(report):
  """(measurement, part) of what a report holds, in the report's order."""
  return [(one, report[one.name]) for one in known() if report.get(one.name)]


def named(*settings):
  """{name: spec} of what `--measure` and `--certify` name.

  Args:
    *settings: specs, such as `"bound(loss_cap=4)"`: each a list, a string with commas between
      several, or None.

  Raises:
    UserError: for an unknown measurement or option, or a value of the wrong kind.
  """
  found = {}
  for text in (part for given in settings for part in _specs(given)):
    name = spec.build(_PACKAGE, text, Measurement).name
    if name in found:
      raise errors.UserError(f"--measure names {name} twice: give its options in one place")
    found[name] = text
  return found


def _specs(texts):
  return spec.split(texts or "") if isinstance(texts, str | None) else list(texts)


def chosen(given, kind):
  """The measurements of an evaluation, in order.

  Args:
    given: the settings, `settings.Assess`.
    kind: the model's: see `Measurement.kinds`.

  Raises:
    UserError: as in `named`, and for a measurement that is not for models of this kind.
  """
  asked, found = named(given.measure, given.certify), []
  for one in known():
    text = asked.get(one.name, one.name)
    options = spec.parse(text)[1]
    flags = {
      name: getattr(given, flag) for name, flag in one.aliases().items() if name not in options
    }
    one = dataclasses.replace(spec.build(_PACKAGE, text, Measurement), **flags)
    if one.name in asked and kind not in one.kinds:
      kinds = " or ".join(_KINDS[name] for name in one.kinds)
      raise errors.UserError(
        f"{one.name} is for {kinds}, and this model is {_KINDS[kind]}: leave it out"
      )
    if one.wanted(kind, one.name in asked) and kind in one.kinds:
      found.append(one)
  return found

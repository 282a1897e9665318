"""Mistakes of the user, reported in one line."""

import difflib
import numbers


class UserError(ValueError):
  """A mistake that the user can fix.  Its message is one line that says how.

  ```python
  try:
    urkle_tf.load_encoder("no-such-folder")
  except urkle_tf.UserError as error:
    print(error)  # no folder 'no-such-folder': give the folder of an encoder
  ```
  """


def reason(error):
  """The message of another error in one line, at most 300 characters."""
  return " ".join(str(error).split())[:300]


def unknown(kind, name, known):
  """Returns the `UserError` for a name that does not exist.

  Args:
    kind: what the name should have been, for example "data set".
    name: the name that was given.
    known: the names that exist.

  Returns:
    A `UserError` that suggests the nearest known name, and lists all of them if they are few.
  """
  known = sorted(known)
  near = difflib.get_close_matches(str(name), known, n=1)
  hint = f"; did you mean {near[0]!r}?" if near else ""
  listing = f" (known: {', '.join(known)})" if len(known) <= 24 else ""
  return UserError(f"unknown {kind} {name!r}{hint}{listing}")


def one_of(kind, name, known):
  """Raises the `UserError` of `unknown` for a name that does not exist."""
  if name not in known:
    raise unknown(kind, name, known)


def at_least(least, who, **options):
  """Raises `UserError` for the first option that is below `least`.

  Args:
    least: a number.
    who: whose options they are, for the message; None for flags.
    **options: by name.
  """
  _refuse(lambda value: value >= least, f"at least {least}", who, options)


def above(limit, who, **options):
  """Raises `UserError` for the first option that is not above `limit`; as `at_least`."""
  _refuse(lambda value: value > limit, f"above {limit}", who, options)


def whole(least, who, **options):
  """Raises `UserError` for the first option that is not a whole number of at least `least`."""
  right = lambda value: isinstance(value, numbers.Integral) and value >= least  # noqa: E731
  _refuse(right, f"a whole number of at least {least}", who, options)


def within(interval, who, **options):
  """Raises `UserError` for the first option that is not a number in an interval.

  Args:
    interval: such as "[0, 1)", which excludes 1, or "[1, inf)".
    who: as in `at_least`.
    **options: by name.
  """
  low, high = map(float, interval[1:-1].split(","))
  ends = [low] * interval.startswith("[") + [high] * interval.endswith("]")
  inside = lambda value: low < value < high or value in ends  # noqa: E731
  right = lambda value: isinstance(value, numbers.Real) and inside(value)  # noqa: E731
  _refuse(right, f"in {interval}", who, options)


def check_finite(values, who, then="check its weights"):
  """Raises `UserError` if an array holds NaN or infinity.

  Args:
    values: of any shape.
    who: what returned them.
    then: what to do.
  """
  import numpy as np  # here, so that `--help` and the doctor do without

  if not np.all(np.isfinite(values)):
    raise UserError(f"{who} returns NaN or infinite values: {then}")


def check_seed(seed):
  """Raises `UserError` if NumPy and Keras cannot take a seed."""
  if not 0 <= seed < 2**32:
    raise UserError(f"--seed must be at least 0 and below {2**32}, got {seed}")


def flags_at_least(least, settings, *names):
  """`at_least` for the settings of these names that are not None."""
  at_least(least, None, **_given(settings, names))


def flags_above(limit, settings, *names):
  """`above` for the settings of these names that are not None."""
  above(limit, None, **_given(settings, names))


def _given(settings, names):
  return {name: settings[name] for name in names if settings.get(name) is not None}


def _refuse(right, kind, who, options):
  for name, value in options.items():
    if isinstance(value, bool) or not right(value):
      named = f"{who}: {name}" if who else f"--{name}"
      raise UserError(f"{named} must be {kind}, got {value}")

"""Checks of the ranges of options."""

from urkle_tf import errors


def at_least(least, pretext, **options):
  """Raises `UserError` for the first of a pretext's options that is below `least`."""
  for name, value in options.items():
    if not value >= least:
      raise errors.UserError(f"{pretext}: {name} must be at least {least}, got {value}")


def whole(least, pretext, **options):
  """Raises `UserError` for the first option that is no whole number, or is below `least`."""
  for name, value in options.items():
    if not isinstance(value, int) or value < least:
      raise errors.UserError(
        f"{pretext}: {name} must be a whole number of at least {least}, got {value}"
      )

"""A run's folder: its settings, its metrics, and a lock against other writers."""

import contextlib
import fcntl
import json
import os
import pathlib
import tempfile

from urkle_tf import errors
from urkle_tf.output import files
from urkle_tf.settings import FREE

_DATA, _ENCODER = "# data: ", "# encoder: "  # lines of flags.cfg; older runs have none


def _text(value):
  if isinstance(value, (list, tuple)):
    return ",".join(_text(v) for v in value)
  return repr(value) if isinstance(value, float) else str(value)


class Run:
  """An output folder with its settings, or a stage of such a run.

  Attributes:
    path: the folder.
    settings: the settings, as given.
  """

  def __init__(self, path, settings, lock):
    self.path, self.settings, self._lock = path, settings, lock
    self._file, self._stage = path / "metrics.jsonl", None

  def stage(self, name, folder="."):
    """A stage of the run with its own steps, from 1; its rows have `"stage": name`.

    Args:
      name: the stage's name.
      folder: where its checkpoints go, within the run's folder.

    Returns:
      A `Run` with only the stage's rows of metrics.
    """
    part = Run(self.path / folder, self.settings, self._lock)
    part._file, part._stage = self._file, name
    return part

  def append_metrics(self, row):
    """Appends a row (a dict of numbers) to metrics.jsonl."""
    if self._stage is not None:
      row = {"stage": self._stage, **row}
    with open(self._file, "a") as file:
      file.write(json.dumps(row) + "\n")

  def metrics(self):
    """The rows written so far; an incomplete last line is left out."""
    return [row for row in self._rows() if self._stage in (None, row.get("stage"))]

  def _rows(self):
    """The rows of all stages."""
    if not self._file.exists():
      return []
    rows = []
    for line in self._file.read_text().splitlines():
      try:
        rows.append(json.loads(line))
      except json.JSONDecodeError:
        break
    return rows

  def rewind_metrics(self, step):
    """Drops this stage's rows after `step`: a resumed run writes them again.

    Returns:
      The seconds of training that the kept rows account for.
    """
    ours = lambda row: row.get("stage") == self._stage  # noqa: E731
    rows = [row for row in self._rows() if not ours(row) or row["step"] <= step]
    files.write(self._file, "".join(json.dumps(row) + "\n" for row in rows))
    return rows[-1]["seconds"] if rows else 0.0

  def close(self):
    """Lets another process write to the folder."""
    self._lock.close()


def started(path):
  """Whether the run in a folder has written results; if not, other settings may replace it."""
  metrics = path / "metrics.jsonl"
  if metrics.exists() and metrics.stat().st_size:
    return True
  results = (
    *("checkpoints/*.npz", "clean/checkpoints/*.npz", "encoder", "classifier", "regressor"),
    *("partial", "report.json", "embeddings.npz", "weight_decay.json"),
  )
  return any(any(path.glob(name)) for name in results)


def open_run(output_dir, settings, data=None, encoder=None):
  """Opens a run's folder, or makes it and writes flags.cfg.

  Args:
    output_dir: the folder.
    settings: {flag: value}; None values are left out of flags.cfg.
    data: the fingerprint of its `Source`, which becomes a comment in flags.cfg; None for a run
      whose data may change.
    encoder: the fingerprint of the trained encoder that `settings` name, such as a teacher, which
      becomes a comment too; None for a run without one.

  Returns:
    A `Run`.

  Raises:
    UserError: if no folder is given, it is a file, another process uses it, or it holds a run with
      other settings, other data or another encoder.
  """
  if not output_dir:
    raise errors.UserError("give --output_dir=FOLDER, where the run goes")
  path = pathlib.Path(output_dir)
  _check_apart(path, settings.get("dataset"))
  make(path)
  with contextlib.ExitStack() as stack:  # which an error closes
    lock = stack.enter_context(open(path / ".lock", "w"))
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      raise errors.UserError(
        f"{path} is in use by another process: wait for it, or give another --output_dir"
      ) from None
    lines = {k: _text(v) for k, v in settings.items() if v is not None}
    file = path / "flags.cfg"
    if file.exists() and started(path):
      earlier = file.read_text("utf-8", "surrogateescape").splitlines()
      _check_same(path, lines, earlier)
      _check_data(path, data, earlier)
      _check_encoder(path, encoder, settings.get("pretext", settings.get("encoder")), earlier)
    elif any(path.glob("checkpoints/*.npz")):
      raise errors.UserError(
        f"{path} holds checkpoints but no flags.cfg: give another --output_dir"
      )
    flags = "".join(f"--{name}={value}\n" for name, value in lines.items())
    comments = ((_DATA, data), (_ENCODER, encoder))
    files.write(file, flags + "".join(f"{name}{value}\n" for name, value in comments if value))
    return Run(path, settings, stack.pop_all())


def make(path):
  """Makes an output folder; raises `UserError` if it is a file or would lie in one."""
  try:
    path.mkdir(parents=True, exist_ok=True)
  except (FileExistsError, NotADirectoryError) as error:
    raise errors.UserError(f"{path} is not a folder: give another --output_dir") from error


def _check_apart(path, dataset):
  """Raises `UserError` if a run would lie among its data, where its pictures become images."""
  from urkle_tf.data import labellings  # imports TensorFlow, which this module does without

  kind, _, folder = labellings.split(dataset or "")[0].partition(":")
  folder = os.path.expanduser(folder)
  if kind == "folder" and folder and path.resolve().is_relative_to(pathlib.Path(folder).resolve()):
    raise errors.UserError(
      f"--output_dir={path} lies in the folder of the images, {folder}, and the run's pictures "
      "would become some of them: give another --output_dir"
    )


def _check_same(path, lines, earlier):
  """Raises `UserError` if flags differ from those in the lines of a run's flags.cfg."""
  earlier = dict(line[2:].split("=", 1) for line in earlier if line.startswith("--"))
  for name in sorted({*lines, *earlier} - FREE):
    if lines.get(name) != earlier.get(name):
      raise errors.UserError(
        f"{path} holds a run with --{name}={earlier.get(name, '(default)')}, and this one has "
        f"{lines.get(name, '(default)')}: give another --output_dir, or the same flags to resume"
      )


def _check_data(path, data, earlier):
  """Raises `UserError` if the data differs from that in the lines of a run's flags.cfg."""
  if before := _changed(_DATA, data, earlier):
    raise errors.UserError(
      f"{path} holds a run on {before}, and the data has changed since: now {data}. Give another "
      "--output_dir, or restore the names, labels and number of the images"
    )


def _check_encoder(path, encoder, folder, earlier):
  """Raises `UserError` if the encoder differs from that in the lines of a run's flags.cfg."""
  if _changed(_ENCODER, encoder, earlier):
    raise errors.UserError(
      f"{path} holds a run made from another encoder than the one now in {folder}: give another "
      "--output_dir"
    )


def _changed(mark, now, earlier):
  """The fingerprint after a mark in the lines of flags.cfg if another one is known now, or None."""
  kept = (line.removeprefix(mark) for line in earlier if line.startswith(mark))
  return next((before for before in kept if now and before != now), None)


def opened(output_dir, settings, data=None):
  """A context of `open_run`, or of None without a folder."""
  if not output_dir:
    return contextlib.nullcontext()
  return contextlib.closing(open_run(output_dir, settings, data))


def scratch(settings):
  """A run for a trial or a further worker, in a temporary folder that is removed on closing."""
  stack = contextlib.ExitStack()
  path = stack.enter_context(tempfile.TemporaryDirectory(prefix="urkle_tf-"))
  return Run(pathlib.Path(path), settings, stack)

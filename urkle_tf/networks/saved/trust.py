"""Whether Python code in a model's file may run: only if the user allows it.

A `.keras` file can hold code (a Lambda layer), and a SavedModel can hold operations that read and
write files.  Neither runs unless the user gives `--trust` or calls `granted`.

```python
with urkle_tf.trust.granted():
  encoder = urkle_tf.load_encoder("RUN/encoder")
urkle_tf.trust.is_granted()  # False again
```
"""

import contextlib

from urkle_tf import errors

HINT = "if you trust who wrote it, give --trust (in Python: with urkle_tf.trust.granted():)"

_state = {"granted": False}  # for the whole process: models are also read in separate threads

# Operations that reach beyond a model's own tensors and variables.  A saved model's own reading
# and writing of its variables (SaveV2, RestoreV2) is not among them.
_UNSAFE_NAMES = {
  *("ReadFile", "WriteFile", "MatchingFiles", "PyFunc", "PyFuncStateless", "EagerPyFunc"),
  *("Save", "SaveSlices", "ImmutableConst", "RpcCall", "RpcClient", "RpcServer", "RpcServerStart"),
  *("CreateSummaryFileWriter", "CreateSummaryDbWriter", "SummaryWriter"),
}
_UNSAFE_PARTS = (
  *("Reader", "FileDataset", "LineDataset", "RecordDataset", "SaveDataset", "SnapshotDataset"),
  *("LoadDataset", "SqlDataset", "CSVDataset", "LMDB", "DataService", "Library", "DebugIdentity"),
)


@contextlib.contextmanager
def granted():
  """A context within which models from files may run their code."""
  before = _state["granted"]
  _state["granted"] = True
  try:
    yield
  finally:
    _state["granted"] = before


def is_granted():
  """Whether the user has allowed it: a bool."""
  return _state["granted"]


def check_graph(path, operations):
  """Refuses a graph that reaches beyond its own tensors, unless the user trusts it.

  Args:
    path: where it was read from, for the message.
    operations: the names of its operations.

  Raises:
    UserError: if one of them reads or writes files, or runs code outside the graph.
  """
  unsafe = sorted({name for name in operations if _is_unsafe(name)})
  if unsafe and not is_granted():
    raise errors.UserError(
      f"{str(path)!r} holds operations that reach outside the model ({', '.join(unsafe[:4])}), so "
      f"it is not run: {HINT}"
    )


def _is_unsafe(name):
  return name in _UNSAFE_NAMES or any(part in name for part in _UNSAFE_PARTS)

"""Files that are whole or not there."""

import numpy as np
import pytest

from urkle_tf import files


def test_text_bytes_and_functions(tmp_path):
  files.write(tmp_path / "new" / "text.md", "κ\n")
  assert (tmp_path / "new" / "text.md").read_bytes() == b"\xce\xba\n"
  files.write(tmp_path / "bytes", b"\x00\xff")
  assert (tmp_path / "bytes").read_bytes() == b"\x00\xff"
  files.write(tmp_path / "arrays.npz", lambda file: np.savez(file, a=np.arange(3)))
  np.testing.assert_array_equal(np.load(tmp_path / "arrays.npz")["a"], [0, 1, 2])
  assert not list(tmp_path.rglob("*.side"))


def test_what_stood_there_is_kept_when_writing_fails(tmp_path):
  file = tmp_path / "report.json"
  files.write(file, "old")

  def half(stream):
    stream.write(b"half of the n")
    raise OSError("no space left")

  with pytest.raises(OSError, match="no space"):
    files.write(file, half)
  assert file.read_text() == "old"
  files.write(file, "new")
  assert file.read_text() == "new"

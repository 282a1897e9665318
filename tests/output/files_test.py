"""Files that are whole or not there."""

import resource

import numpy as np
import pytest

from urkle_tf.output import files


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


def test_what_cannot_be_moved_into_place_or_is_interrupted_leaves_nothing(tmp_path):
  (tmp_path / "report.json").mkdir()
  with pytest.raises(OSError, match="directory") as error:
    files.write(tmp_path / "report.json", "new")
  assert error.value.filename == str(tmp_path / "report.json")

  def stopped(stream):
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    files.write(tmp_path / "images.npz", stopped)
  assert [file.name for file in tmp_path.iterdir()] == ["report.json"]


def test_a_full_disk_is_reported_with_the_files_name_and_leaves_no_half_file(tmp_path):
  file = tmp_path / "report.json"
  usual = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (1000, usual[1]))
  try:
    with pytest.raises(OSError, match="File too large") as error:
      files.write(file, b"x" * 2000)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, usual)
  assert error.value.filename == str(file)
  assert list(tmp_path.iterdir()) == []

"""`python -m urkle_tf.doctor` trains, and reports what it finds."""

import os
import re
import sys
from unittest import mock

import commands
import pytest

import urkle_tf
from urkle_tf import doctor


def test_it_trains_and_reports(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(sys, "argv", ["doctor", f"--data_dir={tmp_path}"])
  doctor.main()
  said = capsys.readouterr().out
  assert re.search(rf"^urkle_tf +{urkle_tf.__version__}$", said, re.MULTILINE)
  assert re.search(rf"^numpy +{sys.modules['numpy'].__version__}$", said, re.MULTILINE)
  assert re.search(r"^oneDNN +(on|off)$", said, re.MULTILINE)
  assert re.search(rf"^mnist +not prepared in {tmp_path}$", said, re.MULTILINE)
  trained = r"^training on noise +5 steps in [\d.]+ s, last loss \d+\.\d+$"
  assert re.search(trained, said, re.MULTILINE)


def test_a_training_that_fails_is_reported(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(sys, "argv", ["doctor", f"--data_dir={tmp_path}"])
  monkeypatch.setattr(urkle_tf.Trainer, "compile", mock.Mock(side_effect=MemoryError("full")))
  with pytest.raises(SystemExit) as stopped:
    doctor.main()
  assert stopped.value.code == 1
  assert "FAILED: MemoryError: full" in capsys.readouterr().out


def test_data_are_looked_for_where_tfds_looks(tmp_path, monkeypatch, capsys):
  (tmp_path / "mnist" / "3.0.1").mkdir(parents=True)
  (tmp_path / "mnist" / "3.0.1" / "dataset_info.json").touch()
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
  monkeypatch.setattr(sys, "argv", ["doctor"])
  monkeypatch.setattr(doctor, "devices", lambda: ())
  monkeypatch.setattr(doctor, "train", lambda: ([1.0], 2.0))
  doctor.main()
  said = capsys.readouterr().out
  assert re.search(rf"^mnist +prepared in {tmp_path}$", said, re.MULTILINE)
  assert re.search(rf"^cifar10 +not prepared in {tmp_path}$", said, re.MULTILINE)


def test_cores_are_counted_without_affinities(monkeypatch):
  monkeypatch.delattr(os, "sched_getaffinity")
  monkeypatch.setattr(os, "cpu_count", lambda: 12)
  assert dict(doctor.installation())["CPU cores"] == "12"


def test_memory_is_read_from_the_text_of_linux():
  text = "MemTotal:        8388608 kB\nMemFree:   1 kB\nMemAvailable:    1048576 kB\nHugePages: 0\n"
  assert doctor.memory(text) == (1.0, 8.0)
  assert doctor.memory("MemTotal: 8388608 kB\n") is None


def test_no_data_is_prepared_in_the_home_of_nobody():
  assert doctor.data_sets("~no-such-user/data") == dict.fromkeys(doctor.DATA, False)


@pytest.mark.full
def test_tensorflow_is_not_heard():
  quiet = {"TF_CPP_MIN_LOG_LEVEL": None}
  done = commands.process(sys.executable, "-m", "urkle_tf.doctor", environment=quiet)
  assert done.stderr == ""
  assert "training on noise       5 steps in" in done.stdout

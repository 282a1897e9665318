"""`python -m urkle_tf.doctor` trains, and reports what it finds."""

import re
import sys
from unittest import mock

import pytest

import urkle_tf
from urkle_tf import doctor


def test_it_trains_and_reports(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(sys, "argv", ["doctor", f"--data_dir={tmp_path}"])
  doctor.main()
  said = dict(re.findall(r"^(.{23}\S?) *(.+)$", capsys.readouterr().out, re.MULTILINE))
  said = {name.strip(): value for name, value in said.items()}
  assert said["urkle_tf"] == urkle_tf.__version__
  assert said["numpy"] == sys.modules["numpy"].__version__
  assert said["mnist"] == f"not prepared in {tmp_path}"
  assert said["oneDNN"] in ("on", "off")
  assert re.fullmatch(r"5 steps in [\d.]+ s, last loss \d+\.\d+", said["training on noise"])


def test_a_training_that_fails_is_reported(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(sys, "argv", ["doctor", f"--data_dir={tmp_path}"])
  monkeypatch.setattr(urkle_tf.Trainer, "compile", mock.Mock(side_effect=MemoryError("full")))
  with pytest.raises(SystemExit) as stopped:
    doctor.main()
  assert stopped.value.code == 1
  assert "FAILED: MemoryError: full" in capsys.readouterr().out

"""What `python -m urkle_tf.doctor` finds out, on machines that these tests make up."""

import re
import sys
from unittest import mock

import pytest

import urkle_tf
from urkle_tf import doctor


def tensorflow(seen, cuda):
  """As much of TensorFlow as the doctor asks about GPUs."""
  tf = mock.MagicMock()
  tf.config.list_physical_devices.return_value = seen
  tf.config.experimental.get_device_details.return_value = {"device_name": "NVIDIA H100"}
  tf.sysconfig.get_build_info.return_value = {"is_cuda_build": cuda}
  return tf


def test_a_gpu_that_tensorflow_does_not_see_is_named(tmp_path, monkeypatch):
  smi = tmp_path / "nvidia-smi"
  smi.write_text("#!/bin/sh\necho 'GPU 0: NVIDIA L4 (UUID: x)'\n")
  smi.chmod(0o755)
  monkeypatch.setenv("PATH", str(tmp_path))
  monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
  (line,) = doctor.gpus(tensorflow([], cuda=True))
  assert line.startswith("GPU 0: NVIDIA L4 (UUID: x): TensorFlow does not see it, because CUDA_VIS")
  assert list(doctor.gpus(tensorflow([mock.MagicMock()], cuda=True))) == [
    "NVIDIA H100 (seen by TensorFlow)"
  ]
  monkeypatch.setenv("PATH", "")
  with mock.patch.object(doctor.glob, "glob", return_value=["/dev/nvidia0"]):
    (line,) = doctor.gpus(tensorflow([], cuda=False))
  assert line.startswith("/dev/nvidia0: TensorFlow does not see it, because this TensorFlow was")
  with mock.patch.object(doctor.glob, "glob", return_value=[]):
    assert list(doctor.gpus(tensorflow([], cuda=False))) == ["none"]


def test_prepared_data_sets_are_found(tmp_path):
  prepared = tmp_path / "cifar10" / "3.0.2"
  prepared.mkdir(parents=True)
  (tmp_path / "mnist").mkdir()  # begun, and not finished
  (prepared / "dataset_info.json").write_text("{}")
  found = doctor.data_sets(tmp_path)
  assert found.pop("cifar10")
  assert not any(found.values())


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

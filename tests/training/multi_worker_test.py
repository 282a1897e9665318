"""Two workers over loopback: the steps of one device, one worker's death, the way back."""

import json
import signal
import sys
import time

import loopback
import numpy as np
import pytest
import workers
from cases import refuses
from small_models import PRETEXTS, RUN, rows_of, tiny_encoder

import urkle_tf
from urkle_tf import distribution, export, networks, spec

pytestmark = pytest.mark.timeout(1800)  # three processes that compile every cell with --full

COMMON = {**RUN, "split": "train[:160]", "epochs": 1, "learning_rate": 0.02, "log_every": 1}
ON_DEVICE = {"augment": "simclr(strength=0.5, flip=false)", "augment_on_device": True}
CELLS = {name: {"pretext": pretext} for name, pretext in PRETEXTS.items()}
CELLS["simclr"] |= ON_DEVICE
CELLS["vae"]["augment"] = "crop(padding=1)"
CELLS["ae"]["robustness"] = "trades(beta=1)"
CELLS["keep"] |= {"robustness": "urkle(anchor=original)", "learning_rate": 1e-4}
# If a gradient is 0 up to rounding, its sign may differ, and with it an l_inf adversary.
CELLS["rocl"] = {"pretext": PRETEXTS["simclr"], "robustness": "rocl", "norm": "l2"}
CELLS["acl"] = {"pretext": PRETEXTS["simclr"], "robustness": "acl(ema=0.9)"}
LONG = ["--encoder=convnet(width=4, layers=2)", "--split=train[:64]", "--batch_size=16"]
LONG += ["--epochs=5000", "--attack_steps=1", "--log_every=2", "--checkpoint_every=6"]


def _rows(run):
  return rows_of(run) if (run / "metrics.jsonl").exists() else []


def _wait(condition, processes, logs):
  while not condition():  # the suite's timeout ends it
    for index, process in enumerate(processes):
      assert process.poll() is None, (logs / f"{index}.log").read_text()
    time.sleep(0.1)


def _long_run(logs, jobs, run):
  command = [sys.executable, workers.__file__, json.dumps(jobs), *LONG, f"--output_dir={run}"]
  return loopback.start(logs, [*command, "--strategy=multi_worker"])


@pytest.fixture(scope="module")
def started(tmp_path_factory):
  """Two workers that go through every cell and then train until they are stopped."""
  folder = tmp_path_factory.mktemp("workers")
  teacher = export.export_encoder(tiny_encoder(5), folder / "teacher")
  cells = dict(CELLS)
  for name in ("distil", "clusters"):
    cells[name] |= {"pretext": f"{name}(teacher={teacher})"}
  original = folder / "original.keras"
  networks.convnet((8, 8, 1), width=4, layers=2).save(original)
  copy = {"pretext": f"keep(original='{original}')", "encoder": str(original)}
  cells["keep"] |= {**copy, "latent_dim": None, "loc": None}
  both = {**COMMON, "strategy": "multi_worker"}
  jobs = [{**both, **cell, "output_dir": str(folder / name)} for name, cell in cells.items()]
  by_clock = {"epochs": None, "minutes": 2 / 60, "output_dir": str(folder / "clock")}
  jobs.append({**jobs[0], **by_clock})
  processes = _long_run(folder, jobs, folder / "long")
  yield folder, cells, processes
  for process in processes:
    process.kill()
    process.wait()


def _same_steps(name, expected, found):
  assert [row["step"] for row in found] == list(range(1, 11))
  for one, two in zip(expected, found, strict=True):
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-3), (name, one["step"])
    assert two["gradient_norm"] == pytest.approx(one["gradient_norm"], rel=1e-2), name
  # The same step, except for the order of sums: the first is nearer than the tenth.
  assert found[0]["loss"] == pytest.approx(expected[0]["loss"], rel=2e-5), name
  assert len({row["loss"] for row in found}) == 10


@pytest.mark.full
@pytest.mark.usefixtures("plain_runs")
def test_two_workers_take_the_steps_of_one_device(started, mirrored, tmp_path, monkeypatch):
  """Ten steps; each worker augments its half, and exchanges z, statistics and gradients.

  Of every pretext, and by two replicas of one process too.
  """
  folder, cells, processes = started
  assert {*cells} >= {*spec.names("pretexts")}
  scopes = {"one": distribution.strategy("one"), "two replicas": mirrored}
  rows = {}
  for name, cell in cells.items():
    for kind, scope in scopes.items():
      run = tmp_path / f"{name} {kind}"
      with monkeypatch.context() as patch:
        patch.setattr(distribution, "strategy", lambda name, scope=scope: scope)
        urkle_tf.pretrain(output_dir=str(run), **{**COMMON, **cell})
      rows[name, kind] = _rows(run)
  _wait(lambda: _rows(folder / "long"), processes, folder)
  for name in cells:
    for found in (_rows(folder / name), rows[name, "two replicas"]):
      _same_steps(name, rows[name, "one"], found)


@pytest.mark.full
def test_two_workers_end_together_by_the_clock_of_the_first(started):
  folder, _, processes = started
  _wait(lambda: _rows(folder / "long"), processes, folder)  # both have continued from there
  rows = _rows(folder / "clock")
  assert rows[-2]["seconds"] < 2 <= rows[-1]["seconds"]
  assert rows[-2]["learning_rate"] > rows[-1]["learning_rate"] == 0


@pytest.mark.full
def test_the_death_of_a_worker_ends_the_other_and_both_resume(started, tmp_path):
  folder, _, processes = started
  run = folder / "long"
  _wait(lambda: list(run.glob("checkpoints/*.npz")), processes, folder)
  processes[1].send_signal(signal.SIGKILL)
  assert processes[0].wait() == 138
  said = (folder / "0.log").read_text()
  assert said.splitlines()[-1].startswith("error: another worker has ended: start all workers")
  assert "Traceback" not in said
  step = _rows(run)[-1]["step"]  # the last checkpoint may be before

  again = _long_run(tmp_path, [], run)
  _wait(lambda: _rows(run)[-1]["step"] > step, again, tmp_path)
  again[1].send_signal(signal.SIGTERM)  # not the one that writes
  assert [process.wait() for process in again] == [143, 143]
  for index in range(2):
    said = (tmp_path / f"{index}.log").read_text()
    assert said.splitlines()[-1].startswith("error: stopped by SIGTERM after step")
  rows = _rows(run)
  steps = [row["step"] for row in rows]
  assert steps == sorted(set(steps))
  assert np.isfinite([row["loss"] for row in rows]).all()
  files = [int(file.stem.removeprefix("step_")) for file in run.glob("checkpoints/*.npz")]
  assert max(files) >= steps[-1]  # the checkpoint that SIGTERM asked for
  assert not (run / "encoder").exists()


# Lists of workers: TensorFlow waits for " b" for ever, and has a traceback for the others.
LISTS = [["a:1", " b:2"], ["a:1", "b"], ["http://a:1"]]


@pytest.mark.parametrize(
  "text",
  [None, "{", '{"cluster": {}}', "[1]", *(json.dumps({"cluster": {"worker": w}}) for w in LISTS)],
)
def test_without_a_cluster_there_is_one_line(text, monkeypatch):
  monkeypatch.delenv("TF_CONFIG", raising=False)
  if text is not None:
    monkeypatch.setenv("TF_CONFIG", text)
  refuses("TF_CONFIG", distribution.strategy, "multi_worker")


def test_a_batch_that_does_not_divide_is_one_line(tmp_path, mirrored, monkeypatch):
  monkeypatch.setattr(distribution, "strategy", lambda name: mirrored)
  settings = {**COMMON, "batch_size": 15, "output_dir": str(tmp_path / "run")}
  refuses("batch_size=15 does not divide evenly among 2", urkle_tf.pretrain, **settings)
  assert not (tmp_path / "run").exists()


def test_several_steps_at_once_need_gpus_on_several_workers(tmp_path, mirrored, monkeypatch):
  """TensorFlow's collectives of CPUs end them in a traceback."""
  monkeypatch.setattr(distribution, "strategy", lambda name: mirrored)
  monkeypatch.setattr(distribution, "several_workers", lambda scope: True)
  settings = {**COMMON, "steps_per_execution": 2, "output_dir": str(tmp_path / "run")}
  refuses("steps_per_execution=2 needs GPUs", urkle_tf.pretrain, **settings)

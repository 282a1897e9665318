"""The launcher of the MNIST table: its table from reports, and a small whole run."""

import json
import shlex
import sys

import commands
import pytest
from cases import refuses

from experiments import reproduce_mnist as script

SCRIPT = commands.ROOT / "experiments" / "reproduce_mnist.py"


# --- Hand-written runs ---


def _attack(mode, accuracy, steps, step_size, restarts=1, own=None):
  part = {"mode": mode, "accuracy": accuracy, "norm": "linf", "epsilon": 0.1, "steps": steps}
  part |= {"step_size": step_size, "restarts": restarts}
  return part if own is None else {**part, "own_accuracy": own}


def _write_run(work, name, flags, report, seconds, head_seconds=None):
  """A finished run: flags and metrics of training (and metrics of a head), and a report."""
  for folder, total in ((name, seconds), (f"{name}-head", head_seconds)):
    if total is not None:
      rows = [{"step": 1, "seconds": 1.0}, {"step": 2, "seconds": total}]
      (work / folder).mkdir(parents=True)
      (work / folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
  (work / name / "flags.cfg").write_text("".join(f"--{flag}\n" for flag in flags))
  (work / f"{name}-report").mkdir()
  (work / f"{name}-report" / "report.json").write_text(json.dumps(report))


def _vae_urkle(clean, own, strong, loss):
  attacks = [
    _attack("sampled", own - 0.002, 20, 0.01, own=own),
    _attack("deterministic", own - 0.003, 20, 0.01, own=own - 0.001),
    _attack("sampled", strong, 100, 0.0025, restarts=5),
    _attack("deterministic", strong - 0.01, 100, 0.0025, restarts=5),
  ]
  bound = {"M": 5.0, "examples": 1000, "norm": "linf", "epsilon": 0.1}
  bound |= {"clean_loss": 0.1, "kl_mean": 0.5, "regulariser": 2.5, "value": 2.6}
  bound |= {"vacuous": False, "value_tight": 2.25, "vacuous_tight": False}
  mu = {"deterministic": {"accuracy": 0.99}}
  return {
    "clean": {"mode": "sampled", "accuracy": clean, "examples": 10000, **mu},
    "attacks": attacks,
    "config": {"eot": 10},
    "representation": {"kl_mean": 0.4},
    "bound": {**bound, "measured_adversarial_loss": loss},
  }


@pytest.fixture
def work(tmp_path):
  weak = _attack("deterministic", 0.9851, 20, 0.01, own=0.9852)
  strong = _attack("deterministic", 0.984, 100, 0.0025, restarts=5)
  clean = {"mode": "deterministic", "accuracy": 0.9912, "examples": 10000}
  at = {"clean": clean, "attacks": [weak, strong], "config": {"eot": 1}}
  flags = ["pretext=supervised(width=256, layers=3)", "robustness=adversarial_training"]
  _write_run(tmp_path, "at-0", flags, at, 600.0)
  flags = ["seed=0", "pretext=vae(width=32)", "robustness=urkle(beta=1)"]
  _write_run(tmp_path, "vae_urkle-0", flags, _vae_urkle(0.99, 0.98, 0.97, 0.2), 1170.0, 30.0)
  _write_run(tmp_path, "vae_urkle-2", flags, _vae_urkle(0.992, 0.984, 0.976, 0.3), 1290.0, 30.0)
  (tmp_path / "vae_urkle-1").mkdir()  # still training
  return tmp_path


def test_what_is_collected_from_finished_runs(work):
  at, urkle = script.mnist_page.collect(work, script.ROWS, " --data_dir=DATA_DIR")["rows"]
  assert at == {
    "system": "AT",
    "labels": True,
    "seeds": [0],
    "paper": {"clean": 99.0, "pgd": 98.5},
    "pretext": "supervised(width=256, layers=3)",
    "robustness": "adversarial_training",
    "clean": [99.12],
    "pgd": [98.52],
    "pgd_strong": [98.4],
    "minutes": [10.0],
    "command": "python experiments/reproduce_mnist.py --rows=at --seeds=1 --data_dir=DATA_DIR",
  }
  assert (urkle["seeds"], urkle["labels"]) == ([0, 2], False)
  assert (urkle["clean"], urkle["pgd"], urkle["pgd_strong"]) == ([99, 99.2], [98, 98.4], [97, 97.6])
  expected = {"clean": [99, 99], "pgd": [97.9, 98.3], "pgd_strong": [96, 96.6]}
  assert urkle["deterministic"] == expected
  assert urkle["minutes"] == [20.0, 22.0]  # the head's seconds too
  assert urkle["kl"] == [{"kl_mean": 0.4}] * 2
  assert [part["measured_adversarial_loss"] for part in urkle["bound"]] == [0.2, 0.3]
  assert "--seeds=3" in urkle["command"]


def test_several_seeds():
  # The standard deviation of two numbers is their distance over the root of 2; Student's t of one
  # degree of freedom is 12.706, and the interval 12.706 times half the distance to each side.
  assert script.pages.mean([99.0, 99.2]) == "99.10 ± 0.14 (97.83 to 100.37)"
  assert script.pages.mean([20.0, 22.0], ".1f") == "21.0 ± 1.4 (8.3 to 33.7)"
  assert script.pages.mean([20.0, 22.0], ".3g", ".2g") == "21 ± 1.4 (8.29 to 33.7)"
  assert script.pages.mean([98.4]) == "98.40"


def test_the_page_its_picture_and_its_figures_are_written(work, tmp_path):
  page, figures = tmp_path / "out" / "mnist.md", tmp_path / "out" / "mnist.json"
  script.publish(work, page, figures)
  assert "| AT | all | 99.12 |" in page.read_text()
  assert page.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
  assert json.loads(figures.read_text()) == script.mnist_page.collect(work, script.ROWS)


# --- Commands ---


def test_how_many_seeds():
  usual = script.jobs.parse_seeds(script.ROWS, None)
  assert (usual["at"], usual["ae_trades"], usual["vae_urkle"]) == (1, 3, 3)
  assert set(script.jobs.parse_seeds(script.ROWS, "2").values()) == {2}
  assert script.jobs.parse_seeds(script.ROWS, "1, VAE+Urkle=5") == {
    name: 5 if name == "vae_urkle" else 1 for name in usual
  }
  assert script.jobs.parse_seeds(script.ROWS, "at=2") == {**usual, "at": 2}
  for wrong in ("0", "1,2", "at=", "at=-1", "x"):
    refuses("give how many", script.jobs.parse_seeds, script.ROWS, wrong)


def test_a_command_that_fails_is_named(tmp_path, capfd):
  # A folder that is a file: the command itself says so, before it starts TensorFlow or after.
  stage = script.jobs.Stage("train", "configs/mnist_at.cfg", str(tmp_path), ["--no_such_flag=1"])
  with pytest.raises(SystemExit) as stopped:
    script.jobs.run_stages([stage])
  assert stopped.value.code == 2
  theirs, ours = capfd.readouterr().err.splitlines()
  assert theirs.startswith("error: ")
  assert ours == f"error: this command failed (exit code 2): {stage.text}"
  assert not (tmp_path / "finished.txt").exists()


def test_ctrl_c_lets_a_command_write_its_checkpoint(tmp_path):
  """It reaches both, as in a terminal: the command sends it to its group of processes."""
  python, saved = tmp_path / "python", tmp_path / "saved"
  trap = f"trap 'sleep 1; touch {saved}; exit 130' INT"
  python.write_text(f"#!/bin/bash\n{trap}\nsleep 1\nkill -INT 0\n")
  python.chmod(0o755)
  program = f"""
import os, signal, sys
from experiments import jobs
os.setsid()
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.executable = {str(python)!r}
jobs.main(lambda: jobs.run_stages([jobs.Stage("train", None, "unused", [])]))
"""
  done = commands.process(sys.executable, "-c", program, code=130)
  assert done.stderr == "error: interrupted; the same command resumes from here\n"
  assert saved.exists()


# --- All of it, small ---

SMALL = [
  "--rows=at,vae_urkle",
  "--seeds=1",
  "--dataset=digits",
  "--extra_train=--encoder='convnet(width=4, layers=2)' --epochs=1 --examples=64 --batch_size=32"
  " --attack_steps=1",
  "--extra_finetune=--epochs=1 --examples=64 --batch_size=32",
  "--extra_evaluate=--examples=10 --attacks='pgd(steps=2),pgd(steps=3, restarts=2)' --eot=2"
  " --samples=5 --representation_examples=0 --nochecks",
]


def _files(folder):
  return {path: path.stat().st_mtime_ns for path in folder.glob("*/**/*") if path.is_file()}


@pytest.mark.full
@pytest.mark.timeout(600)
def test_from_images_to_table_and_then_nothing_more_to_do(tmp_path, monkeypatch, capsys):
  arguments = [*SMALL, f"--work={tmp_path}"]
  monkeypatch.chdir(tmp_path)
  page = commands.run_experiment(script.reproduce, arguments, tmp_path / "mnist.md", monkeypatch)
  lines = capsys.readouterr().out.splitlines()
  found = [line for line in lines if line.startswith("python -m ")]
  modules = [shlex.split(line)[2].removeprefix("urkle_tf.") for line in found]
  assert modules == ["train", "evaluate", "train", "finetune", "evaluate"]
  assert [line for line in lines if line.startswith("finished: ")] == [
    f"finished: {line}" for line in found
  ]

  at, urkle = json.loads((tmp_path / "mnist.json").read_text())["rows"]
  for row, name in ((at, "at"), (urkle, "vae_urkle")):
    report = json.loads((tmp_path / f"{name}-0-report" / "report.json").read_text())
    assert row["clean"] == [pytest.approx(100 * report["clean"]["accuracy"])]
    first, strong = (part for part in report["attacks"] if part["mode"] == report["clean"]["mode"])
    assert row["pgd"] == [pytest.approx(100 * first["own_accuracy"])]
    assert 0 <= row["pgd_strong"][0] <= row["pgd"][0] <= 100
    assert row["pgd_strong"] == [pytest.approx(100 * strong["accuracy"])]
  assert "deterministic" in urkle
  assert "deterministic" not in at
  assert urkle["bound"][0]["M"] == 5.0
  assert (tmp_path / "mnist_latent_map.png").exists()
  assert "| VAE+Urkle | none |" in page
  assert str(tmp_path) not in page + (tmp_path / "mnist.json").read_text()

  # A process of its own changes no file.
  before = _files(tmp_path)
  again = commands.process(sys.executable, SCRIPT, *arguments, cwd=tmp_path).stdout.splitlines()
  assert [line.removeprefix("finished: ") for line in again if "python -m " in line] == found
  assert sum(line.startswith("finished: ") for line in again) == len(found)
  assert _files(tmp_path) == before
  assert (tmp_path / "mnist.md").read_text() == page

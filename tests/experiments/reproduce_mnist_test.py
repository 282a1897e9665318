"""The launcher of the MNIST table: its table from reports, and a small whole run."""

import json
import os
import shlex
import sys

import commands
import pytest
from cases import refuses
from small_models import write_rows

from experiments import reproduce_mnist as script

SCRIPT = commands.ROOT / "experiments" / "reproduce_mnist.py"


# --- Hand-written runs ---


def _write_run(work, name, flags, report, seconds, head_seconds=None):
  """A finished run: flags and metrics of training (and metrics of a head), and a report."""
  for folder, total in ((name, seconds), (f"{name}-head", head_seconds)):
    if total is not None:
      write_rows(work / folder, [{"step": 1, "seconds": 1.0}, {"step": 2, "seconds": total}])
  (work / name / "flags.cfg").write_text("".join(f"--{flag}\n" for flag in flags))
  script.pages.write(work / f"{name}-report" / "report.json", report)


def _report(modes, **more):
  """A report, from {mode: [clean accuracy, under PGD-20, PGD's own, under PGD-100 x 5]}."""
  (mode, clean), *others = ((mode, {"accuracy": values[0]}) for mode, values in modes.items())
  threat, attacks = {"norm": "linf", "epsilon": 0.1}, []
  weak, strong = {"steps": 20, "step_size": 0.01, "restarts": 1}, {"steps": 100}
  strong |= {"step_size": 0.0025, "restarts": 5}
  for name, (_, accuracy, own, least) in modes.items():
    attacks.append({"mode": name, "accuracy": accuracy, "own_accuracy": own, **threat, **weak})
    attacks.append({"mode": name, "accuracy": least, **threat, **strong})
  clean |= {"mode": mode, "examples": 10000, **dict(others)}
  return {"clean": clean, "attacks": attacks, "config": {"eot": 10 if others else 1}, **more}


def _vae_urkle(clean, own, strong, loss):
  sampled, mu = [clean, own - 0.002, own, strong], [0.99, own - 0.003, own - 0.001, strong - 0.01]
  modes = {"sampled": sampled, "deterministic": mu}
  bound = {"M": 5.0, "measured_adversarial_loss": loss}
  return _report(modes, representation={"kl_mean": 0.4}, bound=bound)


@pytest.fixture
def work(tmp_path):
  at = _report({"deterministic": [0.9912, 0.9851, 0.9852, 0.984]})
  flags = ["pretext=supervised(width=256, layers=3)", "robustness=adversarial_training"]
  _write_run(tmp_path, "at-0", flags, at, 600.0)
  flags = ["seed=0", "pretext=vae(width=32)", "robustness=urkle(beta=1)"]
  _write_run(tmp_path, "vae_urkle-0", flags, _vae_urkle(0.99, 0.98, 0.97, 0.2), 1170.0, 30.0)
  _write_run(tmp_path, "vae_urkle-2", flags, _vae_urkle(0.992, 0.984, 0.976, 0.3), 1290.0, 30.0)
  (tmp_path / "vae_urkle-1").mkdir()  # still training
  return tmp_path


def test_what_is_collected_from_finished_runs(work):
  at, urkle = script.mnist_page.collect(work, script.ROWS, " --data_dir=DATA_DIR")["rows"]
  command = "python experiments/reproduce_mnist.py --rows=at --seeds=1 --data_dir=DATA_DIR"
  wanted = {"system": "AT", "labels": True, "seeds": [0], "paper": {"clean": 99.0, "pgd": 98.5}}
  wanted |= {"pretext": "supervised(width=256, layers=3)", "robustness": "adversarial_training"}
  wanted |= {"clean": [99.12], "pgd": [98.52], "pgd_strong": [98.4], "minutes": [10.0]}
  assert at == {**wanted, "command": command}
  assert (urkle["seeds"], urkle["labels"]) == ([0, 2], False)
  assert (urkle["clean"], urkle["pgd"], urkle["pgd_strong"]) == ([99, 99.2], [98, 98.4], [97, 97.6])
  expected = {"clean": [99, 99], "pgd": [97.9, 98.3], "pgd_strong": [96, 96.6]}
  assert urkle["deterministic"] == expected
  assert urkle["minutes"] == [20.0, 22.0]  # the head's seconds too
  assert urkle["kl"] == [{"kl_mean": 0.4}] * 2
  assert [part["measured_adversarial_loss"] for part in urkle["bound"]] == [0.2, 0.3]
  assert "--seeds=3" in urkle["command"]


def test_a_report_of_one_attack_has_no_row():
  report = _report({"deterministic": [0.99, 0.98, 0.98, 0.97]})
  report["attacks"].pop()
  refuses("two attacks at one radius", script.mnist_page.scores, report)


def test_several_seeds():
  # The standard deviation of two numbers is their distance over the root of 2; Student's t of one
  # degree of freedom is 12.706, and the interval 12.706 times half the distance to each side.
  assert script.pages.mean([99.0, 99.2]) == "99.10 ± 0.14 (97.83 to 100.37)"
  assert script.pages.mean([20.0, 22.0], ".1f") == "21.0 ± 1.4 (8.3 to 33.7)"
  assert script.pages.mean([20.0, 22.0], ".3g", ".2g") == "21 ± 1.4 (8.29 to 33.7)"
  assert script.pages.mean([98.4]) == "98.40"


# --- Commands ---


def test_how_many_seeds():
  usual = script.jobs.parse_seeds(script.ROWS, None)
  assert (usual["at"], usual["ae_trades"], usual["vae_urkle"]) == (1, 3, 3)
  assert set(script.jobs.parse_seeds(script.ROWS, "2").values()) == {2}
  wanted = {**dict.fromkeys(usual, 1), "vae_urkle": 5}
  assert script.jobs.parse_seeds(script.ROWS, "1, VAE+Urkle=5") == wanted
  assert script.jobs.parse_seeds(script.ROWS, "at=2") == {**usual, "at": 2}
  for wrong in ("0", "1,2", "at=", "at=-1", "x"):
    refuses("give the number of seeds", script.jobs.parse_seeds, script.ROWS, wrong)


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


def test_a_command_is_run_again_after_the_one_before_it(tmp_path, monkeypatch):
  """A new encoder, whose old head was refused once, had that head taken for its own."""
  stages = script.jobs.stages(str(tmp_path / "run"), None, [], [], [])
  started, code = [], 0

  def run_python(words):
    started.append(words[1])
    return code if words[1].endswith("finetune") else 0

  monkeypatch.setattr(script.jobs, "run_python", run_python)
  assert script.jobs.run_stages(stages)
  assert not script.jobs.run_stages(stages)
  started.clear()
  for stamp in tmp_path.glob("*/finished.txt"):
    os.utime(stamp, (0, 0))  # a clock of files may tick but every few milliseconds
  (tmp_path / "run" / "finished.txt").unlink()  # with the encoder
  code = 2
  for _ in range(2):
    with pytest.raises(SystemExit):
      script.jobs.run_stages(stages)
  assert started == [f"urkle_tf.{name}" for name in ("train", "finetune", "finetune")]


def test_ctrl_c_lets_a_command_write_its_checkpoint(tmp_path):
  """It reaches both, as in a terminal: the command sends it to its group of processes."""
  python, saved, waits = (tmp_path / name for name in ("python", "saved", "waits"))
  trap = f"trap 'sleep 1; touch {saved}; exit 130' INT"
  until = f"until [ -e {waits} ]; do sleep 0.05; done"  # the one that has started it waits for it
  python.write_text(f"#!/bin/bash\n{trap}\n{until}\nkill -INT 0\n")
  python.chmod(0o755)
  program = f"""
import atexit, os, pathlib, signal, subprocess, sys
from experiments import jobs
wait = subprocess.Popen.wait
def say_and_wait(self, *given):
  pathlib.Path({str(waits)!r}).touch()
  return wait(self, *given)
subprocess.Popen.wait = say_and_wait
atexit.register(lambda: print(os.path.exists({str(saved)!r})))
os.setsid()
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.executable = {str(python)!r}
jobs.main(lambda: jobs.run_stages([jobs.Stage("train", None, "unused", [])]))
"""
  done = commands.process(sys.executable, "-c", program, code=130)
  assert done.stderr == "error: interrupted; the same command resumes from here\n"
  assert done.stdout.splitlines()[-1] == "True"  # when the one that waits ended


# --- All of it, small ---


def _files(folder):
  return {path: path.stat().st_mtime_ns for path in folder.glob("*/**/*") if path.is_file()}


@pytest.mark.full
@pytest.mark.timeout(600)
def test_from_images_to_table_and_then_nothing_more_to_do(tmp_path, monkeypatch, capsys):
  attacks = "--attacks='pgd(steps=2),pgd(steps=3, restarts=2)' --eot=2 --samples=5"
  arguments = commands.small(tmp_path, "--rows=at,vae_urkle", "--seeds=1", evaluate=attacks)
  monkeypatch.chdir(tmp_path)
  page = commands.run_experiment(script.reproduce, arguments, tmp_path / "mnist.md", monkeypatch)
  lines = capsys.readouterr().out.splitlines()
  found = [line for line in lines if line.startswith("python -m ")]
  modules = [shlex.split(line)[2].removeprefix("urkle_tf.") for line in found]
  assert modules == ["train", "evaluate", "train", "finetune", "evaluate"]
  finished = [line for line in lines if line.startswith("finished: ")]
  assert finished == [f"finished: {line}" for line in found]

  at, urkle = json.loads((tmp_path / "mnist.json").read_text())["rows"]
  for row in (at, urkle):
    assert 0 <= row["pgd_strong"][0] <= row["pgd"][0] <= 100
  assert "deterministic" in urkle
  assert "deterministic" not in at
  assert urkle["bound"][0]["M"] == 5.0
  assert (tmp_path / "mnist.png").exists()
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

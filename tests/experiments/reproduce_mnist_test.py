"""The launcher of the MNIST table: its table from reports, and a small whole run."""

import json

import commands
import pytest

from experiments import reproduce_mnist as script
from urkle_tf import errors


def test_several_seeds():
  # The standard deviation of two numbers is their distance over the root of 2; Student's t of one
  # degree of freedom is 12.706, and the interval 12.706 times half the distance to each side.
  assert script.pages.mean([99.0, 99.2]) == "99.10 ± 0.14 (97.83 to 100.37)"
  assert script.pages.mean([20.0, 22.0], ".1f") == "21.0 ± 1.4 (8.3 to 33.7)"
  assert script.pages.mean([20.0, 22.0], ".3g", ".2g") == "21 ± 1.4 (8.29 to 33.7)"
  assert script.pages.mean([98.4]) == "98.40"


def test_how_many_seeds():
  usual = script.jobs.parse_seeds(script.ROWS, None)
  assert (usual["at"], usual["ae_trades"], usual["vae_urkle"]) == (1, 3, 3)
  assert set(script.jobs.parse_seeds(script.ROWS, "2").values()) == {2}
  assert script.jobs.parse_seeds(script.ROWS, "1, VAE+Urkle=5") == {
    name: 5 if name == "vae_urkle" else 1 for name in usual
  }
  assert script.jobs.parse_seeds(script.ROWS, "at=2") == {**usual, "at": 2}
  for wrong in ("0", "1,2", "at=-1"):
    with pytest.raises(errors.UserError, match="give how many"):
      script.jobs.parse_seeds(script.ROWS, wrong)


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


@pytest.mark.full
@pytest.mark.timeout(600)
def test_from_images_to_table_and_then_nothing_more_to_do(tmp_path, monkeypatch):
  arguments = [*SMALL, f"--work={tmp_path}"]
  monkeypatch.chdir(tmp_path)
  page = commands.run_experiment(script.reproduce, arguments, tmp_path / "mnist.md", monkeypatch)
  at, urkle = json.loads((tmp_path / "mnist.json").read_text())["rows"]
  for row, name in ((at, "at"), (urkle, "vae_urkle")):
    report = json.loads((tmp_path / f"{name}-0-report" / "report.json").read_text())
    assert row["clean"] == [pytest.approx(100 * report["clean"]["accuracy"])]
    first, strong = (part for part in report["attacks"] if part["mode"] == report["clean"]["mode"])
    assert row["pgd"] == [pytest.approx(100 * first["own_accuracy"])]
    assert row["pgd_strong"] == [pytest.approx(100 * strong["accuracy"])]
  assert "deterministic" in urkle
  assert "deterministic" not in at
  assert urkle["bound"][0]["M"] == 5.0
  assert (tmp_path / "mnist_latent_map.png").exists()
  assert "| VAE+Urkle | none |" in page
  assert str(tmp_path) not in page + (tmp_path / "mnist.json").read_text()

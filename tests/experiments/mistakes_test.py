"""A mistake in the command line of an experiment ends in one line, before anything is run."""

import sys

import commands
import pytest

from experiments import (
  autoattack_mnist,
  certificates,
  compare_cifar10,
  jobs,
  quickstart,
  reproduce_mnist,
  robustify_cifar10,
  sweep,
  teacher_pieces,
  transfer,
  where_loc_lies,
)

MNIST, SMALL, MOVED = reproduce_mnist.reproduce, compare_cifar10.compare, transfer.transfer


def test_runners_start_without_tensorflow():
  """Only the commands that they run need it at once; one that does start it does so unheard."""
  runners = "autoattack_mnist certificates compare_cifar10 reproduce_mnist sweep table "
  runners += "teacher_pieces transfer where_loc_lies"
  program = f"import sys\nfrom experiments import {', '.join(runners.split())}\n"
  program += "print('tensorflow' in sys.modules)"
  assert commands.process(sys.executable, "-c", program).stdout == "False\n"


@pytest.mark.parametrize(
  "run, arguments, words",
  [
    (MNIST, "--rows=at,vae_urkel", "unknown row 'vae_urkel'; did you mean 'vae_urkle'?"),
    (MNIST, "--seed=3", "unrecognized arguments: --seed=3"),
    (MNIST, "--data_dir=nowhere", "--data_dir=nowhere is no folder"),
    (MNIST, "--extra_train=--augment='crop", "No closing quotation"),
    (SMALL, "--extra_train=epochs=3", "write each flag as --name=value, and not 'epochs=3'"),
    (SMALL, "--labels=some", "give all, or numbers"),
    (SMALL, "--strong_labels=500", "500 is not among --labels=all,5000,1000"),
    (SMALL, "--config=none.cfg", "is no file of this folder"),
    (SMALL, "--config=configs", "is no file of this folder"),
    (SMALL, "--config=configs/cifar10_teacher.cfg", "has no --attack_steps"),
    (SMALL, "--equal=luck", "invalid choice: 'luck'"),
    (MOVED, "--tasks=digits", "give --encoder=NAME=FOLDER"),
    (MOVED, "--encoder=a=nowhere", "required: --tasks"),
    (MOVED, "--encoder=a=nowhere --tasks=digits", "no folder 'nowhere'"),
    (MOVED, "--encoder=a=x --encoder=a=y --tasks=digits", "give each another name"),
    (MOVED, "--encoder=a=x --tasks=digits,digits", "'digits' is given twice"),
    (MOVED, "--encoder=a=x --tasks=digits --seeds=0", "--seeds must be at least 1"),
    (MOVED, "--encoder=a=x --tasks=digits --extra_evaluate=-eot=2", "and not '-eot=2'"),
    (certificates.run, "--trained mnist_simclr=nowhere", "there is no encoder in it"),
    (teacher_pieces.run, "--data_dir=nowhere", "prepare cifar10 there"),
    (autoattack_mnist.run, "--work=nowhere --data_dir=.", "at-0/classifier: train it first"),
    (autoattack_mnist.run, "--data_dir=. --seeds=3", "unrecognized arguments: --seeds=3"),
    (quickstart.main, "--heer", "unrecognized arguments: --heer"),
    (robustify_cifar10.main, "--networks Vit", "invalid choice: 'Vit'"),
    (where_loc_lies.main, "--forms spere", "invalid choice: 'spere'"),
    (sweep.main, "--output_dir=x", "give --values"),
    (sweep.main, "--output_dir=x --values=rate", "write --values=name=value"),
    (sweep.main, "--output_dir=x --values=rate=1 --values=rate=2", "given twice"),
    (sweep.main, "--output_dir=x --values=output_dir=a,b", "cannot be swept"),
    (sweep.main, "--output_dir=x --values=rate=1..2", "give --random=N"),
    (sweep.main, "--output_dir=x --values=rate=1 --train='", "No closing quotation"),
    (sweep.main, "--output_dir=x --random=3 --values=rate=2..1", "is empty"),
    (sweep.main, "--output_dir=x --random=3 --values=rate=0..1:log", "logarithm"),
    (sweep.main, "--output_dir=x --random=3 --values=rate=a..b", "cannot read the range"),
  ],
)
def test_mistakes_end_in_one_line(run, arguments, words, tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(sys, "argv", ["script.py", *arguments.split()])
  with pytest.raises(SystemExit) as stopped:
    jobs.main(run)
  assert stopped.value.code == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert line.startswith("error: ")
  assert words in line


@pytest.mark.full
@pytest.mark.parametrize("script", ["effect", "photos", "robustify_cifar10"])
def test_tensorflow_starts_unheard(script):
  environment = {"TF_CPP_MIN_LOG_LEVEL": None}
  words = (sys.executable, str(jobs.ROOT / "experiments" / f"{script}.py"), "--help")
  assert commands.process(*words, environment=environment).stderr == ""

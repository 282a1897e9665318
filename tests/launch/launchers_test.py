"""The launchers: what they would run, and one of them for real."""

import json
import os
import shlex
import shutil
import signal
import sys

import commands
import loopback
import pytest
from absl import flags

LAUNCH = commands.ROOT / "launch"

TRAIN = ["python", "-m", "urkle_tf.train"]
FLAGS = ["--flagfile=configs/cifar10.cfg", "--pretext=simclr(temperature=0.5)", "--output_dir=a b"]


def _dry(script, *arguments, code=0, **environment):
  words = ("bash", LAUNCH / script, "--dry_run", *arguments)
  return commands.process(*words, code=code, environment=environment).stdout.strip()


@pytest.mark.parametrize("script, strategy", [("gpus.sh", "mirrored"), ("tpu_vm.sh", "tpu")])
def test_one_host_would_run(script, strategy, monkeypatch):
  words = shlex.split(_dry(script, *FLAGS))
  assert words[:4] == [*TRAIN, f"--strategy={strategy}"]
  assert words[-3:] == FLAGS
  monkeypatch.chdir(commands.ROOT)
  with commands.defined("train"):
    assert flags.FLAGS(words[2:]) == ["urkle_tf.train"]  # which knows all of them


@pytest.mark.parametrize("number", ["1", "01"])
def test_several_hosts_would_run(number):
  config, *words = shlex.split(_dry("hosts.sh", number, "a:1,b:2,c:3", *FLAGS))
  assert json.loads(config.removeprefix("TF_CONFIG=")) == {
    "cluster": {"worker": ["a:1", "b:2", "c:3"]},
    "task": {"type": "worker", "index": 1},
  }
  assert words == [*TRAIN, "--strategy=multi_worker", *FLAGS]


@pytest.mark.parametrize("script", sorted(LAUNCH.glob("*.sh")), ids=lambda script: script.name)
def test_help_shows_how_to_run_it(script, tmp_path):
  if script.name == "environment.sh":
    pytest.skip("is sourced")
  said = commands.process("bash", script, "--help", cwd=tmp_path).stdout
  assert f" launch/{script.name} " in said
  assert said[0] not in "# \n"


@pytest.mark.parametrize(
  "script, words, error",
  [
    ("hosts.sh", [], "give this host's number, starting from 0, and all HOST:PORT"),
    ("hosts.sh", ["0"], "give this host's number, starting from 0, and all HOST:PORT"),
    ("hosts.sh", ["2", "a:1,b:2"], "the number must be from 0 to 1, got 2"),
    ("slurm.sh", [], "this is not a job of SLURM: submit it with sbatch launch/slurm.sh"),
  ],
)
def test_wrong_arguments_are_named(script, words, error):
  ended = commands.process("bash", LAUNCH / script, *words, code=1)
  assert ended.stderr.startswith(f"urkle_tf: {error}")


def _commands(folder, **scripts):
  """A folder of commands that stand in for others."""
  folder.mkdir()
  for name, script in scripts.items():
    (folder / name).write_text(f"#!/bin/bash\n{script}\n")
    (folder / name).chmod(0o755)
  return f"{folder}{os.pathsep}{os.environ['PATH']}"


def test_a_node_of_slurm_would_run(tmp_path):
  """The command is run, by an srun that starts node 1, and a python that says what it was asked."""
  path = _commands(
    tmp_path / "bin",
    scontrol='[ "$*" = "show hostnames n[1-2]" ] && printf "n1\\nn2\\n"',
    srun='export SLURM_PROCID=1; exec "$@"',
    python='echo "$TF_CONFIG"; printf "%s\\n" "$@"',
  )
  job = {
    "SLURM_JOB_NODELIST": "n[1-2]",
    "SLURM_JOB_ID": "12345",
    "SLURM_SUBMIT_DIR": str(commands.ROOT),
  }
  said = _dry("slurm.sh", *FLAGS, PATH=path, **job)
  found = commands.process("bash", "-c", said, environment={"PATH": path})
  config, *words = found.stdout.splitlines()
  assert json.loads(config) == {
    "cluster": {"worker": ["n1:22345", "n2:22345"]},
    "task": {"type": "worker", "index": 1},
  }
  assert ["python", *words] == [*TRAIN, "--strategy=multi_worker", *FLAGS]


# A program that runs its arguments in a process group of its own, with Ctrl-C as in a terminal.
_IN_A_TERMINAL = """import os, signal, sys
os.setpgid(0, 0)
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execvp(sys.argv[1], sys.argv[1:])"""


def _clone(folder, script="hosts.sh"):
  """A launcher in a folder of its own, with nothing to install and no time to wait."""
  clone = folder / "clone"
  (clone / "launch").mkdir(parents=True)
  shutil.copy(LAUNCH / script, clone / "launch")
  (clone / "launch" / "environment.sh").write_text("make_environment() { :; }\nsleep() { :; }\n")
  return clone


def test_hosts_start_again_and_stop(tmp_path):
  """launch/hosts.sh with a training that first loses its peer, is then stopped, and resumes."""
  clone = _clone(tmp_path)
  path = _commands(
    tmp_path / "bin",
    python="echo started >> starts; case $(wc -l < starts) in 1) exit 138;; 2) exit 143;; esac\n"
    "trap 'echo saved >> starts; exit 143' TERM\n"
    "echo ready >> starts; for _ in {1..1200}; do /bin/sleep 0.05; done",
  )
  starts = clone / "starts"
  log, words = tmp_path / "log", ["bash", clone / "launch" / "hosts.sh", "0", "a:1,b:2"]
  process = commands.start(words, log, PATH=path)
  commands.wait(lambda: starts.exists() and "ready" in starts.read_text(), process, log)
  process.send_signal(signal.SIGTERM)
  assert process.wait() == 143
  assert starts.read_text().split() == ["started"] * 3 + ["ready", "saved"]
  assert log.read_text().splitlines() == ["urkle_tf: starting again"] * 2
  (clone / "starts").unlink()
  wrong = _commands(tmp_path / "wrong", python="exit 2")
  words = ("bash", clone / "launch" / "hosts.sh", "0", "a:1")
  commands.process(*words, code=2, environment={"PATH": wrong})  # not started again


def test_ctrl_c_reaches_the_training_of_a_host_once_and_a_second_signal_ends_it(tmp_path):
  """It came twice, from the terminal and from the script, and twice means: without a checkpoint."""
  clone = _clone(tmp_path)
  with open(clone / "launch" / "environment.sh", "a") as file:
    # The training is gone before the script looks again.
    file.write('kill() { builtin kill "$@" && /bin/sleep 0.1; }\n')
  said = clone / "said"
  stubborn = 'for each in INT TERM; do trap "echo $each >> said" $each; done\n'
  stubborn += "echo ready >> said; for _ in {1..1200}; do /bin/sleep 0.05; done"
  path = _commands(tmp_path / "bin", python=stubborn)
  words, log = ["bash", clone / "launch" / "hosts.sh", "0", "a:1,b:2"], tmp_path / "log"
  words = [sys.executable, "-c", _IN_A_TERMINAL, *words]
  process = commands.start(words, log, PATH=path)
  commands.wait(lambda: said.exists() and "ready" in said.read_text(), process, log)
  os.killpg(process.pid, signal.SIGINT)
  commands.wait(lambda: "INT" in said.read_text(), process, log)
  process.send_signal(signal.SIGTERM)
  assert process.wait() == 137
  assert said.read_text().split() == ["ready", "INT"]


def test_a_signal_before_a_restart_ends_with_the_code_of_the_training(tmp_path):
  clone = _clone(tmp_path)
  with open(clone / "launch" / "environment.sh", "a") as file:
    file.write("sleep() { kill -TERM $$; }\n")
  python = "echo started >> starts; [ $(wc -l < starts) -gt 1 ] || exit 138"
  words = ("bash", clone / "launch" / "hosts.sh", "0", "a:1,b:2")
  path = _commands(tmp_path / "bin", python=python)
  commands.process(*words, code=138, environment={"PATH": path})
  assert (clone / "starts").read_text() == "started\n"


def test_a_signal_before_the_script_knows_its_training_reaches_it(tmp_path):
  """The training went on, and only a second signal ended it, without a checkpoint."""
  clone = _clone(tmp_path)
  with open(clone / "launch" / "environment.sh", "a") as file:
    # The training has begun, but the script has not taken its number yet.
    file.write('set() { builtin set "$@"; [ "$1" != +m ] || builtin kill -TERM $$; }\n')
  path = _commands(tmp_path / "bin", python="for _ in {1..200}; do /bin/sleep 0.05; done")
  words = ("bash", clone / "launch" / "hosts.sh", "0", "a:1,b:2")
  commands.process(*words, code=143, environment={"PATH": path})


@pytest.mark.parametrize(
  "installed, replaced",
  [("tensorflow", True), ("tensorflow tensorflow-tpu", True), ("tensorflow-tpu", False)],
)
def test_a_tpu_vm_has_only_the_tensorflow_of_tpus(tmp_path, installed, replaced):
  """With both, the files are those of the one that was installed later."""
  clone = _clone(tmp_path, "tpu_vm.sh")
  has = r"""for name in $HAS; do [[ $2 = *[\"\']$name[\"\']* ]] && exit; done; exit 1"""
  python = f'[ "$1" != -c ] || {{ {has}; }}; echo "$@" >> said'
  path = _commands(tmp_path / "bin", python=python)
  words = ("bash", clone / "launch" / "tpu_vm.sh", *FLAGS)
  commands.process(*words, environment={"PATH": path, "HAS": installed})
  *pip, train = (clone / "said").read_text().splitlines()
  assert train.startswith("-m urkle_tf.train --strategy=tpu")
  assert [line.split()[2] for line in pip] == ["uninstall", "install"] * replaced


@pytest.mark.full
@pytest.mark.skipif(not shutil.which("setsid"), reason="needs setsid")
def test_two_hosts_train_for_real(tmp_path):
  """Both halves of launch/hosts.sh on this host."""
  clone = _clone(tmp_path)
  path = _commands(tmp_path / "bin", python=f'exec {sys.executable} "$@"')
  hosts = ",".join(loopback.addresses(2))
  run = tmp_path / "run"
  flags = ["--encoder=convnet(width=4, layers=2)", "--split=train[:64]", "--batch_size=16"]
  flags += ["--epochs=2", "--attack_steps=1", f"--output_dir={run}"]
  words = ["bash", clone / "launch" / "hosts.sh"]
  processes = [
    commands.start([*words, number, hosts, *flags], tmp_path / f"{number}.log", PATH=path)
    for number in range(2)
  ]
  assert [process.wait() for process in processes] == [0, 0]
  assert (run / "encoder" / "saved_model.pb").exists()

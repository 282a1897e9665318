"""Disks that are full or read-only, under real commands: one line, and nothing is lost.

They mount a small disk in a separate namespace, and are skipped if the system does not allow that.
"""

import json
import re
import subprocess
import sys

import commands
import numpy as np
import pytest
import tensorflow as tf
from alike import same

from urkle_tf import command_line

JOB = ["--encoder=convnet(width=4, layers=2)", "--split=train[:64]", "--epochs=2"]
JOB += ["--batch_size=16", "--attack_steps=1", "--augment=none", "--robustness=none"]
JOB += ["--log_every=1", "--checkpoint_every=1"]

# Mounts a disk of argv[1] KiB on argv[2]; then trains there four times: when it is full, when it
# has room, when it is read-only, and beside it for comparison.  Prints [[exit code, stderr], ...].
PROGRAM = """
import json, os, shutil, subprocess, sys
sys.path.insert(0, "tests")
import commands
commands.prepare()
size, disk, beside, *words = sys.argv[1:]

def mount(*options):
  subprocess.run(["mount", *options], check=True)

def train(folder):
  return commands.run("train", [*words, f"--output_dir={folder}"])

mount("-t", "tmpfs", "-o", f"size={size}k", "tmpfs", disk)
results = [train(disk + "/run")]
results.append(sorted(os.listdir(disk + "/run/checkpoints")))
mount("-o", "remount,size=40m", disk)
results.append(train(disk + "/run"))
shutil.copytree(disk + "/run", beside + "/grown")
mount("-o", "remount,ro", disk)
results.append(train(disk + "/run"))
results.append(train(disk + "/other"))
results.append(train(beside + "/undisturbed"))
print(json.dumps(results))
"""


@pytest.mark.parametrize(
  ("error", "code", "words"),
  [
    ("ResourceExhausted: x; No space left on device", 1, "resumes"),
    ("Unknown: events; Disk quota exceeded", 1, "resumes"),
    ("FailedPrecondition: x; File too large", 1, "resumes"),
    ("Unknown: x; Input/output error", 1, "resumes"),
    ("ResourceExhausted: OOM when allocating", 1, "--batch_size"),
    ("NotFound: a.tfrecord; No such file\nmore", 1, "a.tfrecord"),
    ("DataLoss: corrupted record at 7", 1, "corrupted record at 7"),
    ("Unknown: x\nUserError: do this\ny", 2, "do this"),
  ],
)
def test_what_tensorflow_says_of_a_machine_is_one_line(error, code, words):
  kind, _, text = error.partition(": ")
  error = getattr(tf.errors, f"{kind}Error")(None, None, text)
  line, found = command_line._tensorflow_error(error)
  assert found == code
  assert words in line
  assert "\n" not in line


def test_bugs_are_not_hidden():
  assert command_line._tensorflow_error(tf.errors.InternalError(None, None, "a bug")) is None
  assert command_line._tensorflow_error(tf.errors.NotFoundError(None, None, "a variable")) is None
  assert command_line._tensorflow_error(ValueError("a bug")) is None


MOUNTING = ["unshare", "--user", "--map-root-user", "--mount"]


def may_mount():
  words = [*MOUNTING, "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
  try:
    return subprocess.run(words, capture_output=True).returncode == 0
  except OSError:
    return False


@pytest.mark.full
@pytest.mark.skipif(not may_mount(), reason="needs to mount a disk in a separate namespace")
def test_a_full_disk_and_a_read_only_one(tmp_path):
  disk, beside = tmp_path / "disk", tmp_path / "beside"
  disk.mkdir()
  beside.mkdir()
  done = commands.process(*MOUNTING, sys.executable, "-c", PROGRAM, 1500, disk, beside, *JOB)
  full, kept, room, frozen, other, undisturbed = json.loads(done.stdout.splitlines()[-1])
  code, text = full
  assert code == 1, text
  (line,) = [line for line in text.splitlines() if not line.startswith("epoch ")]
  assert line.startswith("error: No space left on device: ")
  assert "the same command resumes from the last checkpoint" in line
  assert kept  # what was saved before
  assert not [name for name in kept if "side" in name]
  assert room[0] == 0, room[1]
  for code, text in (frozen, other):
    assert code == 1, text
    assert re.fullmatch("error: Read-only file system: .*\n", text)
  assert undisturbed[0] == 0
  states = []
  for run in ("grown", "undisturbed"):
    with np.load(max((beside / run / "checkpoints").iterdir()), allow_pickle=False) as stored:
      states.append(dict(stored))
  assert states[0].keys() == states[1].keys()
  same(states[0].values(), map(states[1].get, states[0]))

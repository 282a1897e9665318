"""Reports what this machine has, and trains five steps on noise, for a bug report.

  python -m urkle_tf.doctor
  python -m urkle_tf.doctor --data_dir=DATA

Prints versions, devices, oneDNN, free memory and disk, prepared data sets, and whether a training
runs.  Exits with 1 if it does not.
"""

import argparse
import glob
import os
import pathlib
import platform
import re
import shutil
import subprocess
import sys
import time
from importlib import metadata

import urkle_tf
from urkle_tf import command_line

_INSTALL = "pip install '.[gpu]' in the clone of urkle_tf"

PACKAGES = (
  *("tensorflow", "keras", "tensorflow-probability", "tf_keras", "tensorflow-datasets"),
  *("keras-cv", "numpy", "protobuf", "scikit-learn"),
)
DATA = ("mnist", "cifar10", "cifar10_corrupted", "cifar100")  # used in experiments and docs
STEPS = 5


def version(package):
  """The version of an installed package, or "not installed"."""
  try:
    return metadata.version(package)
  except metadata.PackageNotFoundError:
    return "not installed"


def memory(text):
  """(available, total) memory in GiB, from the text of /proc/meminfo; None if it is not there."""
  found = [re.findall(rf"^{name}: *(\d+) kB", text, re.M) for name in ("MemAvailable", "MemTotal")]
  return tuple(int(kib) / 2**20 for (kib,) in found) if all(found) else None


def nvidia():
  """Evidence of NVIDIA GPUs in this machine: their names or device files; "" without any."""
  try:
    found = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20)
    if found.returncode == 0 and found.stdout.strip():
      return found.stdout.strip().splitlines()[0]
  except (OSError, subprocess.TimeoutExpired):
    pass
  return ", ".join(sorted(glob.glob("/dev/nvidia[0-9]*")))


def why_unseen(build, libraries, hidden=None):
  """Why TensorFlow does not see a GPU that the machine has.

  Args:
    build: what `tf.sysconfig.get_build_info()` returns.
    libraries: whether NVIDIA's libraries are installed as Python packages.
    hidden: the value of CUDA_VISIBLE_DEVICES, or None.

  Returns:
    One line: the reason, and what to do.
  """
  if not build.get("is_cuda_build"):
    return f"this TensorFlow was built without CUDA: {_INSTALL}, in Linux"
  if hidden is not None and hidden.strip() in ("", "-1"):
    return f"CUDA_VISIBLE_DEVICES={hidden!r} hides it: unset the variable"
  wanted = f"CUDA {build.get('cuda_version', '?')} and cuDNN {build.get('cudnn_version', '?')}"
  if not libraries:
    return f"NVIDIA's libraries are missing ({wanted}): {_INSTALL}"
  return (
    f"the libraries or the driver do not match ({wanted}): run `nvidia-smi`, and start this "
    "command with TF_CPP_MIN_LOG_LEVEL=0 to see which library fails to load"
  )


def gpus(tf):
  """The lines about GPUs."""
  seen = tf.config.list_physical_devices("GPU")
  for device in seen:
    details = tf.config.experimental.get_device_details(device)
    yield f"{details.get('device_name', device.name)} (seen by TensorFlow)"
  there = nvidia()
  if there and not seen:
    libraries = version("nvidia-cudnn-cu12") != "not installed"
    reason = why_unseen(
      tf.sysconfig.get_build_info(), libraries, os.environ.get("CUDA_VISIBLE_DEVICES")
    )
    yield f"{there}: TensorFlow does not see it, because {reason}"
  elif not seen:
    yield "none"


def data_sets(data_dir):
  """{data set: whether it is prepared}, for a folder of TensorFlow Datasets."""
  folder = pathlib.Path(os.path.expanduser(data_dir))  # which leaves ~nobody as it is
  return {name: any(folder.glob(f"{name}/**/dataset_info.json")) for name in DATA}


def train():
  """Trains five steps on noise; returns the losses and the seconds."""
  import numpy as np
  import tensorflow as tf

  started = time.perf_counter()
  noise = np.random.default_rng(0).uniform(size=(STEPS, 8, 2, 32, 32, 3)).astype(np.float32)
  encoder = urkle_tf.GaussianEncoder(
    urkle_tf.networks.backbone("convnet(width=8, layers=2)", (32, 32, 3))
  )
  attack = urkle_tf.attacks.PGD(urkle_tf.attacks.Linf(8 / 255), steps=2)
  trainer = urkle_tf.Trainer(
    encoder, urkle_tf.pretexts.SimCLR(), urkle_tf.robustness.Urkle(k=8), attack
  )
  trainer.compile(optimizer="adam")
  losses = []
  for views in noise:
    batch = tf.data.Dataset.from_tensors({"views": views})
    losses.append(trainer.fit(batch, shuffle=False, verbose=0).history["loss"][0])
  if not np.isfinite(losses).all():
    raise ArithmeticError(f"the loss is not finite: {losses}")
  return losses, time.perf_counter() - started


def installation():
  """(name, value) of everything that is known without TensorFlow."""
  yield "urkle_tf", urkle_tf.__version__
  yield "Python", f"{platform.python_version()}, {platform.platform()}"
  yield from ((name, version(name)) for name in PACKAGES)
  # macOS has no affinities.
  cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
  yield "CPU cores", str(cores)
  meminfo = pathlib.Path("/proc/meminfo")
  if meminfo.exists() and (found := memory(meminfo.read_text(encoding="utf-8"))):
    yield "memory", "{:.1f} GiB free of {:.1f}".format(*found)
  yield "disk here", f"{shutil.disk_usage('.').free / 2**30:.1f} GiB free"


def devices():
  """(name, value) of what TensorFlow sees."""
  if os.environ["TF_CPP_MIN_LOG_LEVEL"] != "0":
    command_line.import_tensorflow()
  import tensorflow as tf

  from urkle_tf.networks import onednn

  yield from (("GPU", line) for line in gpus(tf))
  yield "oneDNN", "on" if onednn.is_on() else "off"


def main():
  """The command line."""
  parser = argparse.ArgumentParser(
    prog="python -m urkle_tf.doctor",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument(
    "--data_dir",
    default=os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets"),  # as TFDS
    help="folder of prepared TFDS data",
  )
  data_dir = parser.parse_args().data_dir
  say = lambda name, value: print(f"{name:24}{value}", flush=True)  # noqa: E731
  for name, value in installation():
    say(name, value)
  for name, there in data_sets(data_dir).items():
    say(name, f"{'prepared' if there else 'not prepared'} in {data_dir}")
  try:
    for name, value in devices():
      say(name, value)
    losses, seconds = train()
  except Exception as error:  # any error belongs in the report
    say("training on noise", f"FAILED: {type(error).__name__}: {error}")
    sys.exit(1)
  say("training on noise", f"{STEPS} steps in {seconds:.1f} s, last loss {losses[-1]:.3f}")


if __name__ == "__main__":
  main()

"""tools/accelerator: programs that take the package's own steps, and encoders of what came back."""

import importlib.util
import json
import os
import pathlib
import sys
import venv

import arrays
import commands
import numpy as np
import pytest
import tensorflow as tf
from alike import same
from cases import refuses, slow
from small_models import RUN
from tensorflow.compiler.mlir.stablehlo import stablehlo
from tensorflow.compiler.tf2xla.python import xla

import urkle_tf
from tools.accelerator import encoder as encoders
from tools.accelerator import export
from urkle_tf import distribution, networks
from urkle_tf.training import checkpoints, jobs

FOLDER = commands.ROOT / "tools" / "accelerator"

TEACHER = {**RUN, "latent_dim": None, "loc": None, "learning_rate": 0.05, "strategy": "one"}
TEACHER |= {"pretext": "simclr(projector=8, projection=4)", "robustness": "none"}
TEACHER |= {"augment": "simclr(strength=0.5, flip=false)", "augment_on_device": True}
TIMED = {**TEACHER, "epochs": None, "minutes": 1, "warmup_minutes": 0.5}
STUDENT = {**TEACHER, "robustness": "urkle(beta=0.01)", "augment": "crop(padding=1)"}
KERNELS = 200  # elements of what counts as a large kernel here


def distil(teacher):
  return {**STUDENT, "pretext": f"distil(teacher={teacher}, start=true)"}


def own_steps(job, batches):
  """What the package's own steps report, [{name: value}], and the state after them."""
  step = tf.function(job.learner.step, autograph=False)
  reported = [{name: float(value) for name, value in step(batch).items()} for batch in batches]
  names = checkpoints.names(job.state)
  return reported, dict(zip(names, map(distribution.plain, job.state), strict=True))


def run_program(folder, batches, teacher=(), clock=None):
  """Runs a program by XLA, which sees no more than what was exported; as `own_steps`."""
  described, state = arrays.read_program(folder)
  if clock is not None:
    state[described["clock"]] = np.float32(clock)
  state |= dict(zip(described["teacher"], teacher, strict=True))
  if described["starts_from_teacher"]:
    state |= dict(zip(described["start"], teacher, strict=True))
  outputs = {int(place): name for place, name in described["outputs"].items()}
  dtypes = [tf.float32] + [tf.as_dtype(state[outputs[k]].dtype) for k in sorted(outputs)]
  shapes = [[len(described["metrics"])]] + [state[outputs[k]].shape for k in sorted(outputs)]
  module = (folder / arrays.PROGRAM).read_bytes()
  options = {"version": 9, "module": module, "Tout": dtypes, "Sout": shapes, "platforms": ["CPU"]}

  @tf.function(jit_compile=True, autograph=False)
  def step(*arguments):
    return xla.call_module(list(arguments), **options)

  found = []
  for batch in batches:
    values, *new = step(batch["image"], *(state[name] for name in described["inputs"]))
    state |= {outputs[k]: value.numpy() for k, value in zip(sorted(outputs), new, strict=True)}
    found.append(dict(zip(described["metrics"], values.numpy(), strict=True)))
  return found, state


def same_steps(ours, theirs, begun):
  """Asserts that two trainings reported the same, and moved their weights in the same way.

  Args:
    ours: as of `own_steps`.
    theirs: the same of the other.
    begun: {name: array} of the encoder before them.
  """
  (reported, after), (found, state) = ours, theirs
  for own, other in zip(reported, found, strict=True):
    assert other == pytest.approx(own, rel=5e-3, abs=1e-4)
  assert found[0]["loss"] == pytest.approx(reported[0]["loss"], rel=1e-4)
  assert set(after) <= set(state)
  for name, value in after.items():
    np.testing.assert_allclose(state[name], value, atol=2e-3, err_msg=name)
  length = lambda one, other: np.sqrt(sum(np.sum((one[n] - other[n]) ** 2) for n in begun))  # noqa: E731
  assert length(state, after) < 0.01 * length(after, begun)


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
  """(folder with the teacher, what its own steps gave, batches, TF's texts)."""
  folder, texts = tmp_path_factory.mktemp("programs"), []
  portable = export._portable
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(arrays, "LARGE", KERNELS)
    patch.setattr(export, "_portable", lambda text: texts.append(text) or portable(text))
    with jobs.prepared(TEACHER) as job:
      export.export_step(job, folder / "teacher", redraw=True)
      urkle_tf.export_encoder(job.learner.encoder, folder / "start")
      batches = list(job.views().take(4))
      own = own_steps(job, batches)
  return folder, own, batches, texts


@pytest.fixture(scope="module")
def student(programs):
  """The student's program; beside it is the encoder that it starts as."""
  folder = programs[0]
  flags = [f"--{name}={value}" for name, value in distil(folder / "start").items() if value]
  flags += [f"--output_dir={folder / 'student'}", f"--write_encoder={folder / 'begun'}"]
  commands.process(sys.executable, FOLDER / "export.py", *flags)
  return folder / "student"


@pytest.mark.full
def test_the_teachers_program_takes_the_packages_own_steps(programs):
  folder, own, batches, _ = programs
  described, state = arrays.read_program(folder / "teacher")
  assert described["drawn"]
  assert all(state[name].size > KERNELS for name in described["drawn"])
  begun = {name: state[name] for name in described["start"]}
  same_steps(own, run_program(folder / "teacher", batches), begun)


@pytest.mark.full
def test_a_program_with_a_teacher_s_clusters_takes_the_packages_own_steps(programs, tmp_path):
  pretext = f"clusters(teacher={programs[0] / 'start'}, count=4, start=true)"
  settings = {**STUDENT, "pretext": pretext, "robustness": "adversarial_training"}
  with jobs.prepared(settings) as job:
    words = "--redraw would replace the weights"
    refuses(words, export.export_step, job, tmp_path / "redrawn", redraw=True)
    export.export_step(job, tmp_path / "student", redraw=False)
    batches = list(job.views().take(4))
    own = own_steps(job, batches)
  described, state = arrays.read_program(tmp_path / "student")
  begun = {name: state[name] for name in described["start"]}
  assert not described["teacher"]
  assert not described["starts_from_teacher"]
  same_steps(own, run_program(tmp_path / "student", batches), begun)


@pytest.mark.full
def test_the_students_program_is_given_its_teacher(programs, student, tmp_path):
  """One that did not exist when it was exported; the package's own student reads it from a file."""
  folder, _, batches, _ = programs
  teacher = urkle_tf.load_encoder(folder / "start")
  rng = np.random.default_rng(1)
  for weight in teacher.network.trainable_weights:
    weight.assign(weight + rng.normal(0, 0.1, weight.shape))
  urkle_tf.export_encoder(teacher, tmp_path / "teacher")
  with jobs.prepared(distil(tmp_path / "teacher")) as job:
    own = own_steps(job, batches)
  weights = [weight.numpy() for weight in teacher.network.weights]
  described, _ = arrays.read_program(student)
  found = run_program(student, batches, weights)
  same_steps(own, found, dict(zip(described["start"], weights, strict=True)))
  assert {"distillation", "kl", "attack_objective"} <= set(found[0][0])


@pytest.mark.full
def test_the_encoder_at_its_start_is_written(student):
  folder = student.parent
  start, begun = (urkle_tf.load_encoder(folder / name).network for name in ("start", "begun"))
  same(start.trainable_weights, begun.trainable_weights)


@pytest.mark.full
def test_a_program_by_the_clock_reads_the_clock(programs, tmp_path):
  _, _, batches, _ = programs
  lengths = {}
  with jobs.prepared(TIMED) as job:
    export.export_step(job, tmp_path)
    described, begun = arrays.read_program(tmp_path)
    job.learner.clock.assign(0.125)  # a quarter of the warm-up
    own = own_steps(job, batches[:1])
  assert described["steps"] is None
  begun = {name: begun[name] for name in described["start"]}
  for clock in (0.125, 0.25):
    found = run_program(tmp_path, batches[:1], clock=clock)
    kernels = [name for name in begun if begun[name].ndim > 1]
    lengths[clock] = sum(np.abs(found[1][name] - begun[name]).sum() for name in kernels)
    if clock == 0.125:
      same_steps(own, found, begun)
  assert lengths[0.25] == pytest.approx(2 * lengths[0.125], rel=0.01)


@pytest.mark.parametrize("name", ["teacher", *slow("student")])
def test_no_operation_is_left_that_gpus_refuse(programs, name, request):
  folder, _, _, texts = programs
  assert texts
  assert all("mhlo.copy" in text for text in texts)
  folder = folder / "teacher" if name == "teacher" else request.getfixturevalue("student")
  found = stablehlo.deserialize_portable_artifact_str((folder / arrays.PROGRAM).read_bytes())
  assert b"stablehlo" in found
  assert b"mhlo" not in found
  assert str(commands.ROOT).encode() not in found


# --- What comes back ---

SETTINGS = {"encoder": "resnet18(width=4)", "min_scale": 0.1, "max_scale": 0.4}
SETTINGS |= {"pretext": "distil(teacher=T)", "robustness": "urkle"}
SETTINGS |= {"dataset": "cifar10", "norm": "linf", "epsilon": 8 / 255}


def sent(loc, latent_dim=None):
  """(an encoder of random weights that float16 holds exactly, what its run says of them)."""
  backbone = networks.backbone(SETTINGS["encoder"], (16, 16, 3))
  encoder = networks.GaussianEncoder(backbone, latent_dim, 0.1, 0.4, loc=loc)
  rng = np.random.default_rng(0)
  for weight in encoder.network.weights:
    positive = any(word in weight.path for word in ("variance", "gamma", "spread"))
    spread = 2 / np.prod(weight.shape[:-1]) ** 0.5
    drawn = rng.normal(0, spread, weight.shape)
    weight.assign(np.float16(rng.uniform(0.5, 1.5, weight.shape) if positive else drawn))
  settings = {**SETTINGS, "loc": loc, "latent_dim": latent_dim}
  paths = [weight.path for weight in encoder.network.weights]
  return encoder, {"encoder_paths": paths, "settings": settings}


@pytest.fixture
def made(monkeypatch):
  """A function as `encoder.make`, which returns (encoder, folder, metadata) and writes nothing."""
  kept = []
  monkeypatch.setattr(encoders.export, "export_encoder", lambda *written: kept.append(written))

  def make(*arguments):
    encoders.make(*arguments)
    return kept.pop()

  return make


@pytest.mark.parametrize(
  "loc", ["pooled", "centred_sphere", *slow("dense", "sphere", "dense_sphere")]
)
def test_weights_that_come_back_are_an_encoder(loc, tmp_path, made, rng):
  """In two files, of float32 and of float16; judge.py, where PyTorch is, agrees."""
  theirs, about = sent(loc, 6 if loc.startswith("dense") else None)
  about["batch"] = [["uint8", [8, 16, 16, 3]]]
  (tmp_path / "student.json").write_text(json.dumps(about))
  weights = [weight.numpy() for weight in theirs.network.weights]
  values, half = {f"{k:03d}": value for k, value in enumerate(weights)}, f"{len(weights) // 2:03d}"
  files = [str(tmp_path / f"student_{number}.npz") for number in (0, 1)]
  # The second file first: the names of arrays say their order.
  np.savez(files[1], **{name: value for name, value in values.items() if name < half})
  np.savez(files[0], **{n: np.float16(value) for n, value in values.items() if n >= half})
  encoder, folder, metadata = made(tmp_path / "encoder", files, tmp_path / "student.json")
  same(weights, encoder.network.get_weights())
  images = rng.uniform(size=(3, 16, 16, 3)).astype(np.float32)
  mean, scale = theirs(images).loc.numpy(), theirs(images).scale
  np.testing.assert_allclose(encoder(images).loc, mean, atol=1e-6 * np.abs(mean).max())
  np.testing.assert_allclose(encoder(images).scale, scale, atol=1e-6)
  assert folder == tmp_path / "encoder"
  assert (metadata["loc"], metadata["stochastic"], metadata["dataset"]) == (loc, True, "cifar10")
  if importlib.util.find_spec("torch"):
    import torch

    from tools.accelerator import judge

    network = judge.Encoder(arrays.read_weights(files), about["encoder_paths"], about["settings"])
    found = network(torch.tensor(images.transpose(0, 3, 1, 2)))
    np.testing.assert_allclose(found[0], mean, atol=1e-4 * np.abs(mean).max())
    np.testing.assert_allclose(found[1], scale, atol=1e-4)


def test_weights_of_an_earlier_run_need_what_its_file_lacks(tmp_path, made):
  """Its settings have another name, its images no size, and some settings were others."""
  theirs, about = sent("sphere")
  about["student_settings"] = {**about.pop("settings"), "epochs": 100}
  (tmp_path / "about.json").write_text(json.dumps(about))
  arrays.write_weights(tmp_path / "student", theirs.network.get_weights())
  arguments = tmp_path / "encoder", [tmp_path / "student_0.npz"], tmp_path / "about.json"
  refuses("no 'settings'", encoders.make, *arguments)
  refuses("give --image_shape=32,32,3", encoders.make, *arguments, settings="student_settings")
  changed = "student_settings", (16, 16, 3), [("epochs", 85)]
  encoder, _, metadata = made(*arguments, *changed)
  same(theirs.network.weights, encoder.network.get_weights())
  assert metadata["settings"]["epochs"] == 85


# --- There ---


@pytest.fixture(scope="module")
def jax_python():
  """A Python that has JAX: this one, or that of a virtual environment at URKLE_JAX_VENV."""
  if importlib.util.find_spec("jax"):
    return sys.executable
  if "URKLE_JAX_VENV" not in os.environ:
    pytest.skip("needs JAX, or URKLE_JAX_VENV, a folder to install it into")
  python = pathlib.Path(os.environ["URKLE_JAX_VENV"], "bin", "python")
  if not python.exists():
    if sys.version_info < (3, 12):
      pytest.skip("JAX 0.11 needs Python 3.12: make the environment of URKLE_JAX_VENV with that")
    venv.create(python.parents[1], with_pip=True)
    wanted = ["jax>=0.11,<0.12", "numpy", "pillow"]
    commands.process(python, "-m", "pip", "install", "--quiet", *wanted)
  return str(python)


@pytest.mark.full
@pytest.mark.timeout(1200)
def test_teacher_and_student_under_jax(programs, student, jax_python, tmp_path):
  """Teacher and student in one go; then the package takes the same steps from the same start."""
  folder, _, _, _ = programs
  with jobs.prepared(TEACHER) as job:
    images = job.source.images
  np.savez(tmp_path / "data.npz", train_images=images, train_labels=np.zeros(len(images), np.int32))
  command = [jax_python, FOLDER / "train.py", tmp_path / "out", f"--data={tmp_path / 'data.npz'}"]
  runs = [f"teacher={folder / 'teacher'}", f"student={student}:teacher=teacher"]
  commands.process(*command, *runs)
  order = [np.random.default_rng(epoch).permutation(len(images)) for epoch in range(2)]
  batches = [{"image": images[rows]} for epoch in order for rows in epoch.reshape(-1, 16)]
  for name, settings in (("teacher", TEACHER), ("student", distil(tmp_path / "teacher"))):
    with jobs.prepared(settings) as job:
      if name == "teacher":
        _, state = arrays.read_program(folder / name)
        for variable, value in zip(job.state, map(state.get, checkpoints.names(job.state))):
          variable.assign(value)
      own, _ = own_steps(job, batches)
      weights = [weight.numpy() for weight in job.learner.encoder.network.weights]
    about = tmp_path / "out" / f"{name}.json"
    encoders.make(tmp_path / name, [tmp_path / "out" / f"{name}_0.npz"], about)
    network = urkle_tf.load_encoder(tmp_path / name).network
    same(network.weights, weights, atol=3e-3, rtol=1e-7)
    log = (tmp_path / "out" / "log.jsonl").read_text()
    rows = [json.loads(line) for line in log.splitlines()]
    (row,) = [row for row in rows if row.get("run") == name]
    assert (row["step"], row["epoch"]) == (6, 2)
    assert row["loss"] == pytest.approx(np.mean([values["loss"] for values in own]), rel=5e-3)
    assert json.loads(about.read_text())["settings"]["epochs"] == 2

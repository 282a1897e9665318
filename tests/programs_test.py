"""The exported step, run without Keras: the losses and the state of the training's own steps."""

import importlib.util
import json
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from small_models import RUN
from tensorflow.compiler.tf2xla.python import xla

import urkle_tf
from urkle_tf import checkpoints, distribution, errors, pretraining, programs

ROOT = pathlib.Path(__file__).resolve().parents[1]
TINY = {
  **RUN,
  "output_dir": None,
  "learning_rate": 0.05,
  "strategy": "one",
  "pretext": "simclr(projector=8, projection=4)",
  "augment": "simclr(strength=0.5, flip=false)",
  "augment_on_device": True,
}


def _module(lower):
  """The program as TensorFlow's reader of StableHLO takes it: without what it has of MHLO."""
  text = lower("stablehlo").replace("= mhlo.copy ", "= stablehlo.optimization_barrier ")
  text = re.sub(r" \{mhlo\.frontend_attributes = \{[^}]*\}\}", "", text)
  return re.sub(r"^(module @\S+) attributes \{.*\} \{$", r"\1 {", text, count=1, flags=re.MULTILINE)


def _execute(folder, module, state, batches):
  """Runs the program by XLA, which sees no more than what was exported: [(metrics, state)]."""
  described = json.loads((folder / programs.DESCRIPTION).read_text())
  inputs = described["inputs"]
  outputs = {int(position): name for position, name in described["outputs"].items()}
  dtypes = [tf.float32] + [tf.as_dtype(state[outputs[k]].dtype) for k in sorted(outputs)]
  shapes = [[len(described["metrics"])]] + [state[outputs[k]].shape for k in sorted(outputs)]

  @tf.function(jit_compile=True, autograph=False)
  def run(*arguments):
    return xla.call_module(
      list(arguments), version=9, module=module, Tout=dtypes, Sout=shapes, platforms=["CPU"]
    )

  found = []
  for batch in batches:
    values, *new = run(*batch, *(state[name] for name in inputs))
    state = {**state, **{outputs[k]: v.numpy() for k, v in zip(sorted(outputs), new)}}
    found.append(dict(zip(described["metrics"], values.numpy())))
  return found, state


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
  """(folder, StableHLO, what Keras's steps report, the state after them, their batches)."""
  folder = tmp_path_factory.mktemp("program")
  with pretraining.prepared(TINY) as job:
    module = _module(programs.export_step(job, folder))
    step = tf.function(job.learner.step, autograph=False)
    batches = list(job.views().take(4))
    reported = [{k: float(v) for k, v in step(batch).items()} for batch in batches]
    names = checkpoints.names(job.state)
    after = dict(zip(names, map(distribution.plain, job.state), strict=True))
  return folder, module, reported, after, [[batch["image"].numpy()] for batch in batches]


def test_the_program_takes_the_steps_of_the_training(exported):
  folder, module, reported, after, batches = exported
  with np.load(folder / programs.STATE) as stored:
    state = {name: stored[name] for name in stored.files if name != "step"}
    assert stored["step"] == 0
  assert set(state) == set(after)
  found, state = _execute(folder, module, state, batches)
  for ours, theirs in zip(reported, found, strict=True):
    for name in ("loss", "nt_xent", "kl", "gradient_norm", "effective_rank"):
      assert theirs[name] == pytest.approx(ours[name], rel=5e-3), name
  assert found[0]["loss"] == pytest.approx(reported[0]["loss"], rel=1e-4)
  moved = 0
  for name, value in after.items():
    np.testing.assert_allclose(state[name], value, atol=2e-3, err_msg=name)
    moved += state[name].size > 1
  assert moved > 10
  assert sum(int(value) == 4 for value in state.values() if value.dtype == np.int64) == 1


def test_what_a_program_saved_goes_on_as_a_training(exported, tmp_path):
  """The state is a checkpoint: `pretrain` goes on from it, and exports."""
  _, _, _, after, _ = exported
  options = {**TINY, "output_dir": str(tmp_path / "run")}
  run = urkle_tf.runs.open_run(options["output_dir"], _settings(options))
  run.close()
  (run.path / "checkpoints").mkdir()
  np.savez(run.path / "checkpoints" / "step_000000004.npz", step=np.int64(4), **after)
  row = urkle_tf.pretrain(**options)
  assert [row["step"] for row in urkle_tf.runs.Run(run.path, {}, None).metrics()] == [6]
  assert row["step"] == 6
  assert pathlib.Path(row["encoder"], "saved_model.pb").exists()


def _settings(options):
  import inspect

  usual = inspect.signature(urkle_tf.pretrain).parameters.items()
  return {**{name: p.default for name, p in usual}, **options}


def test_outputs_are_told_from_the_text():
  text = (
    "HloModule a, is_scheduled=true, input_output_alias={ {1}: (3, {}, may-alias), "
    "{2}: (7, {}, must-alias) }, entry_computation_layout={(f32[])->{9}: (4, }"
  )
  assert programs._updates(text) == [(1, 3), (2, 7)]


@pytest.mark.parametrize(
  "options, words",
  [({"augment_on_device": False}, "--augment_on_device"), ({"augment": "augmix"}, "device")],
)
def test_mistakes_end_in_one_line(options, words, tmp_path):
  with (
    pytest.raises(errors.UserError, match=words) as caught,
    pretraining.prepared({**TINY, **options}) as job,
  ):
    programs.export_step(job, tmp_path)
  assert "\n" not in str(caught.value)
  assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="JAX is not installed")
def test_the_launchers_train_under_jax(tmp_path):
  flags = [f"--{name}={value}" for name, value in TINY.items() if value is not None]
  run = tmp_path / "run"
  for command in (
    ["export_step.py", *flags, f"--output_dir={run}"],
    ["run_steps.py", str(run / "program")],
  ):
    subprocess.run([sys.executable, ROOT / "launch" / command[0], *command[1:]], check=True)
  rows = [json.loads(line) for line in (run / "program" / "log.jsonl").read_text().splitlines()]
  assert [row["step"] for row in rows] == [3, 6]
  assert all(np.isfinite(row["loss"]) for row in rows)

"""`pretrain` on the bundled digits: its folder, its resume, its refusals."""

import shutil
import signal

import hypothesis
import keras
import numpy as np
import pytest
import tensorflow as tf
from alike import same
from cases import refused, refuses, slow
from hypothesis import strategies as st
from interruptions import copied
from small_models import RUN, photographs, rows_of, small_encoder, untimed

import urkle_tf
from urkle_tf import export
from urkle_tf.data import pipeline
from urkle_tf.training import checkpoints, jobs, runs

SMALL = {**RUN, "latent_dim": 8, "split": "train[:64]", "epochs": 3, "learning_rate": 0.05}
SMALL |= {"log_every": 3, "checkpoint_every": 5}


def _pretrain(folder, **options):
  return urkle_tf.pretrain(output_dir=str(folder), **{**SMALL, **options})


def _network(folder):
  plain = folder / "encoder" / "weights.npz"
  if not plain.exists():
    return urkle_tf.load_encoder(str(folder / "encoder")).network.get_weights()
  with np.load(plain, allow_pickle=False) as stored:
    return [stored[name] for name in stored.files]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """A run that was never interrupted; beside it are copies of it as they were at two steps."""
  folder = tmp_path_factory.mktemp("whole") / "run"
  with copied({1: _at(folder, 5), 2: _at(folder, 10)}):
    result = _pretrain(folder, probe_split="train[100:200]")
  return folder, result


def _at(folder, step):
  return folder.with_name(f"{folder.name}-at-{step}")


def _same_runs(folder, other):
  """Asserts that two runs have the same weights and rows of metrics."""
  ones, others = ([*map(untimed, rows_of(run))] for run in (folder, other))
  assert ones == others
  same(_network(folder), _network(other))


def test_a_run_leaves_what_the_contract_says(whole):
  folder, result = whole
  for name in ("flags.cfg", "metrics.jsonl", "checkpoints", "tensorboard", "encoder"):
    assert (folder / name).exists()
  rows = rows_of(folder)
  # every 3 steps, every 5 for a checkpoint, and at the ends of epochs of 4 steps
  assert [row["step"] for row in rows] == [3, 4, 5, 6, 8, 9, 10, 12]
  needed = "step epoch seconds images_per_second learning_rate loss nt_xent kl"
  assert all({*needed.split()} <= {*row} for row in rows)
  assert [row["epoch"] for row in rows if row["step"] % 4 == 0] == [1.0, 2.0, 3.0]
  assert all("knn_accuracy" in row for row in rows if row["step"] % 4 == 0)
  assert rows[-1]["learning_rate"] < 1e-6 < rows[0]["learning_rate"]  # cosine to 0
  assert result["loss"] == rows[-1]["loss"]
  assert "--robustness=urkle" in (folder / "flags.cfg").read_text().splitlines()


@pytest.mark.usefixtures("plain_runs")
@pytest.mark.parametrize("at", [5, *slow(10)])  # in mid-epoch, with and without rows after it
def test_resume_equals_no_interruption(whole, tmp_path, at):
  shutil.copytree(_at(whole[0], at), tmp_path, dirs_exist_ok=True)
  run = runs.Run(tmp_path, {}, None)
  run.append_metrics({"step": at + 1, "seconds": 0.0})  # written after the checkpoint, then killed
  _pretrain(tmp_path, probe_split="train[100:200]")
  _same_runs(tmp_path, whole[0])


@pytest.mark.full
@pytest.mark.usefixtures("plain_runs")
@pytest.mark.parametrize("at", [1, 4, 7])
def test_a_signal_ends_the_step_and_nothing_is_lost(whole, tmp_path, signalled, at):
  """With a mean half full, at an epoch's end, and between two rows."""
  stopped = signalled(lambda: _pretrain(tmp_path, probe_split="train[100:200]"), at)
  assert (stopped.number, stopped.step) == (signal.SIGTERM, at)
  assert max((tmp_path / "checkpoints").iterdir()).name == f"step_{at:09d}.npz"
  _pretrain(tmp_path, probe_split="train[100:200]")
  _same_runs(tmp_path, whole[0])


def _poison(monkeypatch, *steps):
  """Batches of these steps, counted from 0, hold no numbers."""
  views = pipeline.views

  def poisoned(*arguments, start_step=0, **options):
    def poison(step, batch):
      bad = tf.reduce_any(step == tf.constant(steps, tf.int64))
      return batch | {"views": tf.where(bad, np.float32("nan"), batch["views"])}

    return views(*arguments, start_step=start_step, **options).enumerate(start_step).map(poison)

  monkeypatch.setattr(pipeline, "views", poisoned)


@pytest.mark.full
def test_a_bad_batch_is_skipped_and_a_resume_skips_it_too(tmp_path, monkeypatch, killed):
  _poison(monkeypatch, 5, 6)
  ones = _pretrain(tmp_path / "whole")
  assert ones["skipped_steps"] == 2
  assert all(np.isfinite(values).all() for values in _network(tmp_path / "whole"))
  killed(lambda: _pretrain(tmp_path / "killed", checkpoint_every=6), saves=1)
  _pretrain(tmp_path / "killed", checkpoint_every=6)
  same(_network(tmp_path / "killed"), _network(tmp_path / "whole"))
  rows = rows_of(tmp_path / "whole")
  skipped = {3: 0, 4: 0, 5: 0, 6: 1, 8: 2, 9: 2, 10: 2, 12: 2}
  assert {row["step"]: row["skipped_steps"] for row in rows} == skipped
  assert [row["loss"] is None for row in rows] == [row["step"] == 6 for row in rows]


@pytest.mark.full
@pytest.mark.usefixtures("plain_runs")
def test_many_bad_batches_in_a_row_end_the_run_with_evidence(tmp_path, monkeypatch):
  _poison(monkeypatch, 6, 7, 8, 9)
  good = f"the last good checkpoint is {tmp_path / 'checkpoints' / 'step_000000005.npz'}"
  with refused("steps 7 to 8 have a loss or a gradient that is not", good, "--learning_rate"):
    _pretrain(tmp_path, max_bad_steps=2)
  with np.load(tmp_path / "bad_batch.npz", allow_pickle=False) as batch:
    assert int(batch["step"]) == 6
    assert batch["views"].shape == (16, 2, 8, 8, 1)
    assert np.isnan(batch["views"]).all()
    assert np.isfinite(batch["image"]).all()
  assert not (tmp_path / "encoder").exists()


@pytest.mark.usefixtures("plain_runs")
def test_a_short_run_of_bad_batches_alone_exports_nothing(tmp_path, monkeypatch):
  _poison(monkeypatch, *range(12))
  refuses("steps 1 to 12 have a loss or a gradient that is not", _pretrain, tmp_path)
  assert not (tmp_path / "encoder").exists()


def test_a_checkpoint_that_is_not_finite_is_not_called_good(tmp_path):
  saved, variable, files = _three(tmp_path)
  assert saved.last_good() == files[-1]
  variable.assign([1.0, np.inf])
  saved.save(4)
  files[-1].write_bytes(b"torn")
  assert saved.last_good() == files[-2]


def test_a_finished_run_is_not_run_again(whole):
  folder, result = whole
  before = rows_of(folder)
  again = _pretrain(folder, probe_split="train[100:200]")
  assert rows_of(folder) == before
  assert again["loss"] == result["loss"]


def _three(folder):
  """Checkpoints of steps 1 to 3, all of whose two numbers are the step."""
  variable = keras.Variable([0.0, 0.0])
  saved = checkpoints.Checkpoints(folder, [variable])
  for step in (1, 2, 3):
    variable.assign([step, step])
    saved.save(step)
  return saved, variable, sorted(folder.glob("step_*.npz"))


def test_torn_checkpoints_fall_back_to_the_one_before(tmp_path):
  saved, variable, files = _three(tmp_path)
  saved.save(4)
  assert len(list(tmp_path.glob("step_*.npz"))) == 3  # several are kept, not all
  for file in (max(tmp_path.iterdir()), files[-1]):
    file.write_bytes(file.read_bytes()[:-40])
  assert saved.restore() == variable.numpy()[0] == 2


def test_damaged_checkpoints_do_not_displace_those_of_a_new_start(tmp_path):
  saved, _, files = _three(tmp_path)
  for file in files:
    file.write_bytes(file.read_bytes()[:-40])
    file.rename(file.with_name(file.name.replace("step_0", "step_1")))
  assert saved.restore() == 0
  saved.save(1)
  assert saved.restore() == 1


def test_a_kill_while_a_checkpoint_is_written_leaves_the_others(tmp_path, monkeypatch):
  def killed(stream, **arrays):
    stream.write(b"half of a checkpoint")
    raise KeyboardInterrupt

  saved, variable, files = _three(tmp_path)
  monkeypatch.setattr(np, "savez", killed)
  with pytest.raises(KeyboardInterrupt):
    saved.save(4)
  assert sorted(tmp_path.glob("step_*.npz")) == files
  assert saved.restore() == variable.numpy()[0] == 3


@hypothesis.settings(deadline=None, max_examples=150)
@hypothesis.given(st.data())
def test_no_damage_to_a_checkpoint_is_believed(tmp_path_factory, data):
  """Whatever bytes change, what comes back is some checkpoint's state, and whole."""
  saved, variable, files = _three(tmp_path_factory.mktemp("fuzz"))
  content = bytearray(files[-1].read_bytes())
  for _ in range(data.draw(st.integers(1, 3))):
    content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
  files[-1].write_bytes(content[: data.draw(st.integers(0, len(content)))])
  step = saved.restore()
  assert step in (2, 3)
  np.testing.assert_array_equal(variable.numpy(), [step, step])


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
  checkpoints.Checkpoints(tmp_path, [keras.Variable([1.0], name="a")]).save(1)
  other = checkpoints.Checkpoints(tmp_path, [keras.Variable([1.0, 2.0], name="a")])
  refuses("another model", other.restore)


@pytest.mark.full
def test_init_from_another_run(whole, tmp_path):
  # A learning rate that moves nothing shows where the weights started.
  _pretrain(tmp_path, init_from=str(whole[0]), epochs=1, learning_rate=1e-20, robustness="none")
  network = urkle_tf.load_encoder(str(tmp_path / "encoder")).network
  earlier = urkle_tf.load_encoder(str(whole[0] / "encoder")).network
  same(network.trainable_weights, earlier.trainable_weights)


@pytest.mark.full
@pytest.mark.usefixtures("undrawn")
def test_averages_are_exported_in_place_of_encoder_and_head(tmp_path, monkeypatch):
  found = []

  def keep(model, *_):
    part = getattr(model, "head", model)
    found.append((part, [weight.numpy() for weight in part.weights]))

  monkeypatch.setattr(export, "export_encoder", keep)
  monkeypatch.setattr(export, "export_classifier", keep)
  options = {"pretext": "supervised(width=4, layers=2)", "robustness": "none", "epochs": 1}
  _pretrain(tmp_path, ema=0.9, **options)
  assert len(found) == 2
  for part, exported in found:
    pairs = zip(part.weights, exported, strict=True)
    assert max(np.abs(weight.numpy() - value).max() for weight, value in pairs) > 1e-3


@pytest.mark.usefixtures("plain_runs")
@pytest.mark.parametrize(
  "pretext", ["simclr", *slow("vae(width=4, layers=2)", "supervised(width=4)")]
)
def test_labels_never_reach_the_encoder(whole, tmp_path, monkeypatch, pretext):
  """The same weights come out when every label of the training data is wrong."""
  from urkle_tf.data import sources

  load, right = sources.load, whole[0]
  options = {} if pretext == "simclr" else {"pretext": pretext, "epochs": 1}
  if options:
    right = tmp_path / "right"
    _pretrain(right, **options)

  def mislabelled(*args, **kwargs):
    source = load(*args, **kwargs)
    if source.split == SMALL["split"]:
      source.labels[:] = source.labels[::-1].copy()
    return source

  monkeypatch.setattr(sources, "load", mislabelled)
  _pretrain(tmp_path / "wrong", **options)
  networks = [_network(folder) for folder in (tmp_path / "wrong", right)]
  same = all(np.array_equal(one, other) for one, other in zip(*networks, strict=True))
  assert same != pretext.startswith("supervised")  # which shows that the test can fail


@pytest.mark.parametrize(
  "options, words",
  [
    ({"dataset": "digitz"}, "did you mean 'digits'"),
    ({"epsilon": -0.1}, "epsilon must be & got -0.1"),
    ({"epsilon": 8.0}, "0-255"),
    ({"norm": "l3"}, "unknown norm 'l3'"),
    ({"batch_size": 65}, "larger than the 64 examples"),
    ({"batch_size": 1}, "at least 2"),
    ({"epochs": 0}, "--epochs must be at least 1"),
    ({"steps_per_execution": 0}, "--steps_per_execution must be at least 1, got 0"),
    ({"ema": 1.0}, "--ema must be in [0, 1), got 1.0"),
    ({"learning_rate": 0.0}, "--learning_rate must be above 0"),
    ({"optimizer": "adam"}, "did you mean 'adamw'"),
    ({"precision": "float16"}, "unknown precision 'float16'"),
    ({"strategy": "two"}, "unknown strategy 'two'"),
    ({"augment": "simclr, crop, crop"}, "lists 3 recipes, but the number of views is 2"),
    ({"pretext": "simclr(consistency=12)", "robustness": "rocl"}, "two views & simclr makes 3"),
    ({"init_from": "nowhere"}, "holds no encoder"),
    ({"probe_split": "train[9999:]"}, "split 'train[9999:]'"),
    ({"norm": "l2", "epsilon": 8 / 255}, "--norm=l2 needs --epsilon, because the default, 0.03137"),
    ({"attack": "n_fgsm", "norm": "l2", "epsilon": 0.5}, "is for linf only"),
    ({"attack": "pgd(steps=3)"}, "unknown option of pgd 'steps'"),
    ({"attack_precision": "float16"}, "unknown attack_precision 'float16'"),
    ({"attack_schedule": "risng"}, "did you mean 'rising'"),
    ({"attack_schedule": "rising(first=0)"}, "must be a whole number of at least 1"),
    ({"attack_schedule": "rising(first=3)"}, "more than the attack's 2 steps"),
    ({"attack_schedule": "controlled(low=2)"}, "low must be at least 1, and high above it"),
    ({"attack_schedule": "controlled(images=0)"}, "must be a whole number of at least 1"),
    ({"attack_schedule": "controlled(most=1)"}, "most=1 is less than the attack's 2 steps"),
    ({"attack": "square"}, "square makes thousands of forward passes"),
    ({"attack_schedule": "rising", "attack": "apgd"}, "that of apgd is fixed: use --attack=pgd"),
    ({"attack_schedule": "controlled", "robustness": "rocl"}, "robustness scheme has none"),
    ({"minutes": 2.0, "epochs": 3}, "--minutes=2.0 and --epochs=3 both set the end"),
    ({"minutes": 0.0}, "--minutes must be above 0"),
    ({"minutes": 2.0, "warmup_epochs": 1.0}, "give --warmup_minutes in this training by minutes"),
    ({"epochs": 3, "beta_warmup_minutes": 1.0}, "give --beta_warmup_epochs in this"),
    ({"minutes": 2.0, "warmup_minutes": -1.0}, "must be at least 0 and below --minutes=2.0"),
    ({"minutes": 2.0, "epsilon_warmup_minutes": 2.0}, "--epsilon_warmup_minutes must be at least"),
    ({"minutes": 2.0, "robustness": "acl(anneal=4)"}, "give --augment_on_device, or --epochs"),
  ],
)
def test_mistakes_end_in_one_line(tmp_path, options, words):
  if "minutes" in options:
    options = {"epochs": None, **options}
  refuses(words, _pretrain, tmp_path / "run", **options)
  # The probe's images are read once the run has its folder.
  assert not (tmp_path / "run" / ("encoder" if "probe_split" in options else "")).exists()


@pytest.mark.parametrize(
  "optimizer, rate", [("sgd(momentum=0)", 0.1), ("adamw", 1e-3), ("lars", 1)]
)
def test_an_optimizer_has_its_own_learning_rate(optimizer, rate):
  settings = {**SMALL, "optimizer": optimizer, "learning_rate": None, "warmup_epochs": 1.0}
  with jobs.prepared(settings) as job:
    assert float(job.learner.optimizer.learning_rate) == 0
    job.learner.optimizer.iterations.assign(job.steps_per_epoch)  # after the warm-up
    assert float(job.learner.optimizer.learning_rate) == pytest.approx(rate)
    assert job.settings["learning_rate"] == rate


def test_a_folder_of_other_settings_is_refused_and_kept(whole):
  folder, _ = whole
  before = (folder / "flags.cfg").read_text()
  options = {"probe_split": "train[100:200]", "learning_rate": 0.1}
  refuses("holds a run with --learning_rate=0.05", _pretrain, folder, **options)
  assert (folder / "flags.cfg").read_text() == before


@pytest.mark.full
@pytest.mark.usefixtures("plain_runs")
def test_steps_of_one_execution_are_the_same_steps(whole, tmp_path):
  """Two at a time: the rows that come at the same steps, and the weights."""
  _pretrain(tmp_path, steps_per_execution=2)
  ones, twos = ({row["step"]: row for row in rows_of(run)} for run in (whole[0], tmp_path))
  assert list(twos) == [4, 6, 8, 10, 12]
  # Means begin after the row before: those of the last two steps alone begin at the same step.
  assert twos[12]["loss"] == pytest.approx(ones[12]["loss"], rel=1e-5)
  same(_network(tmp_path), _network(whole[0]), atol=1e-6)
  words = "=3 does not divide the 4 steps of an epoch"
  refuses(words, _pretrain, tmp_path / "other", steps_per_execution=3)


def test_two_processes_cannot_share_a_folder(tmp_path):
  first = runs.open_run(tmp_path, {"seed": 0})
  refuses("in use", runs.open_run, tmp_path, {"seed": 0})
  first.close()
  runs.open_run(tmp_path, {"seed": 0}).close()


@pytest.mark.parametrize("stage", ["", "clean"])  # the latter is that of `semi_supervised`
def test_a_checkpoint_before_the_first_row_keeps_the_settings(tmp_path, stage):
  """SIGTERM may leave such a folder, and a run with other settings must not resume it."""
  runs.open_run(tmp_path, {"seed": 0}).close()
  checkpoints.Checkpoints(tmp_path / stage / "checkpoints", []).save(1)
  refuses("holds a run with --seed=0", runs.open_run, tmp_path, {"seed": 1})


@pytest.mark.full
@pytest.mark.usefixtures("plain_runs")
def test_urrl_trains_on_a_clean_view_and_two_mixtures(tmp_path):
  crop = "crop(padding=1)"
  mixed = f"augmix(base='{crop}')"
  options = {"pretext": "simclr(consistency=12, projector=8)", "robustness": "none", "epochs": 1}
  row = _pretrain(tmp_path, augment=f"{crop}, {mixed}, {mixed}", **options)
  assert row["loss"] == pytest.approx(row["nt_xent"] + row["consistency"], rel=1e-5)
  assert 0 < row["consistency"] < 12 * np.log(3)


@pytest.mark.parametrize("place", ["", "run", "runs/a"])
def test_a_run_among_its_images_is_refused(tmp_path, place, monkeypatch):
  photographs(tmp_path, 4, 8)
  monkeypatch.setenv("HOME", str(tmp_path))
  words = "lies in the folder of the images"
  labelled = f"folder:{tmp_path}:brightness", f'folder:{tmp_path}:any_of(classes="tone:high")'
  for dataset in (f"folder:{tmp_path}", "folder:~", *labelled):
    refuses(words, runs.open_run, tmp_path / place, {"dataset": dataset})
  assert len(list(tmp_path.iterdir())) == 4
  for name, dataset in (("lost", "folder:nowhere"), ("run", f"folder:{tmp_path}")):
    runs.open_run(tmp_path.with_name(f"{tmp_path.name}-{name}"), {"dataset": dataset}).close()


@pytest.mark.parametrize("place", [".", "run"])
def test_an_output_folder_that_is_a_file_is_refused(tmp_path, place):
  file = tmp_path / "file"
  file.touch()
  refuses("file & is not a folder", runs.open_run, file / place, {"seed": 0})
  model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten()])
  layer = keras.layers.Rescaling(16.0)
  refuses("file & is not a folder", urkle_tf.robustify, model, file / place, layer, epochs=1)


def test_a_teacher_that_changed_under_a_run_is_refused(tmp_path):
  """The rest of the training, or its finished encoder, would be that of another teacher."""
  encoder = small_encoder()
  teacher = urkle_tf.export_encoder(encoder, tmp_path / "teacher")
  options = {"pretext": f"distil(teacher={teacher})", "epochs": 1, "robustness": "none"}
  _pretrain(tmp_path / "run", **options)
  weights = encoder.network.get_weights()
  encoder.network.set_weights([2 * array for array in weights])
  shutil.rmtree(teacher)
  urkle_tf.export_encoder(encoder, teacher)
  words = "made from another encoder than the one now in distil(teacher="
  refuses(words, _pretrain, tmp_path / "run", **options)


def test_data_that_changed_under_a_run_is_refused(tmp_path):
  """Above all a finished report, which would be returned as if it were of these images."""
  for kind in ("a", "b"):
    photographs(tmp_path / "photos" / kind, 4, 8)
  data = {"dataset": f"folder:{tmp_path}/photos", "split": "all", "batch_size": 4}
  run, head, report = (str(tmp_path / name) for name in ("run", "head", "report"))
  exported = _pretrain(run, epochs=1, **data)["encoder"]
  classifier = urkle_tf.adapt(exported, head, epochs=1, weight_decay=0.1, **data)["classifier"]
  measured = {"classifier": classifier, "attacks": "pgd", "attack_steps": 1, **data}
  first = urkle_tf.assess(output_dir=report, **measured)
  assert urkle_tf.assess(output_dir=report, **measured) == first
  (tmp_path / "photos/a/0.png").rename(tmp_path / "photos/b/other.png")
  words = "the data has changed since: now 8 images"
  refuses(words, _pretrain, run, epochs=1, **data)
  refuses(words, urkle_tf.adapt, exported, head, epochs=1, weight_decay=0.1, **data)
  refuses(words, urkle_tf.assess, output_dir=report, **measured)
  (tmp_path / "photos/b/other.png").rename(tmp_path / "photos/a/0.png")
  flags = (tmp_path / "run/flags.cfg").read_text()
  (tmp_path / "run/flags.cfg").write_text(flags.split("# data: ")[0])  # of an older version
  _pretrain(run, epochs=1, **data)
  assert (tmp_path / "run/flags.cfg").read_text() == flags

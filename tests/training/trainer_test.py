"""The training step: its loss, its determinism, its replicas."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from alike import same
from cases import refuses, slow
from small_models import noise_views, precision, tiny_encoder, tiny_trainer

import urkle_tf
from urkle_tf import attacks, networks, pretexts, robustness
from urkle_tf.data import augment, pipeline, sources
from urkle_tf.training import guard


def _trainer(scheme=None, attack=None, optimizer=None, **options):
  optimizer = optimizer or keras.optimizers.SGD(0.05, momentum=0.9)
  return tiny_trainer(scheme, attack, optimizer=optimizer, **options)


def _weights(trainer):
  return [v.numpy() for v in trainer.encoder.variables + trainer.pretext.variables]


@pytest.mark.parametrize("arrays", [False, *slow(True)])
def test_the_contracts_example_trains_on_tuples_of_views(arrays):
  views = tuple(np.random.default_rng(0).uniform(size=(2, 32, 8, 8, 1)).astype("float32"))
  given = {"x": tf.data.Dataset.from_tensor_slices(views).batch(8)}
  if arrays:
    given = {"x": views, "batch_size": 8, "shuffle": False}
  history = _trainer().fit(**given, epochs=6, verbose=0).history
  assert history["loss"][-1] < history["loss"][0]
  assert {"nt_xent", "kl", "sigma_mean", "zero_gradients"} <= set(history)


@pytest.mark.parametrize("returned", [None, {}, {"lenght": 1.0}])
def test_a_pretext_that_returns_other_terms_ends_in_one_line(returned):
  class Short(pretexts.Pretext):
    terms = ("length",)

    def loss(self, representations, aux, training=True):
      return returned

  trainer, batch = _trainer(pretext=Short()), next(iter(noise_views()))
  refuses("Short names the terms ['length'], but returned", trainer.step, batch)


def test_names_in_place_of_objects_end_in_one_line():
  encoder = tiny_encoder()
  refuses("a Pretext object, not 'simclr'", urkle_tf.Trainer, encoder, "simclr")
  refuses("a Robustness object, not", urkle_tf.Trainer, encoder, pretexts.SimCLR(), "urkle(k=2)")
  network = encoder.network
  refuses("a GaussianEncoder object, not", urkle_tf.Trainer, network, pretexts.SimCLR())
  refuses("a schedule object, not", _trainer, schedule="rising")


@pytest.mark.parametrize("scheme", [robustness.Urkle(), robustness.ACL()])
def test_a_loaded_encoder_ends_in_one_line_if_the_scheme_needs_more(scheme):
  loaded = networks.ExportedEncoder(tiny_encoder().network)
  refuses("not a loaded encoder & start_from", _trainer, scheme, encoder=loaded)


def test_a_loaded_encoder_takes_a_new_scheme_with_a_term_of_any_name():
  """It was refused for the name alone."""

  class Drift(robustness.Plain):
    terms = ("kl",)

    def losses(self, pretext, representations, views, aux):
      return {"kl": (1.0, representations.normal.loc[:, 0, 0])}

  loaded = networks.ExportedEncoder(tiny_encoder().network)
  assert _trainer(Drift(), encoder=loaded).encoder is loaded


def test_float16_ends_in_one_line():
  """Its loss is scaled: clipping took the scale for gradient, and after an overflow all steps."""
  with precision("mixed_float16"):
    trainer = urkle_tf.Trainer(tiny_encoder(), pretexts.SimCLR(projector=8, projection=4))
  refuses("computes in float16 & mixed_bfloat16", trainer.compile)


@pytest.mark.parametrize(
  "optimizer, words",
  [
    (keras.optimizers.SGD(gradient_accumulation_steps=2), "leave gradient_accumulation_steps out"),
    (keras.optimizers.SGD(loss_scale_factor=64.0), "cannot scale the loss"),
    (keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD()), "cannot scale the loss"),
  ],
)
def test_optimizers_that_accumulate_or_scale_end_in_one_line(optimizer, words):
  """A skipped step advances `iterations`, and clipping saw the scaled gradient."""
  refuses(words, _trainer, optimizer=optimizer)


def test_saving_it_as_a_model_ends_in_one_line(tmp_path):
  """As `ModelCheckpoint` does by default."""
  refuses("save_weights_only=True", _trainer().save, tmp_path / "trainer.keras")


def test_a_pretext_of_another_trainer_ends_in_one_line():
  """Its new heads would join the old ones, and replace those of the other trainer."""
  pretext = pretexts.SimCLR(projector=8, projection=4)
  trainer = urkle_tf.Trainer(tiny_encoder(), pretext)
  count = len(trainer.trainable_variables)
  words = "this SimCLR already belongs to another Trainer"
  refuses(words, urkle_tf.Trainer, tiny_encoder(), pretext)
  assert len(trainer.trainable_variables) == count


def test_two_trainers_of_one_scheme_keep_their_own_weights():
  """On a sphere, k sets the weight by d_z; here the second encoder has another."""
  scheme = robustness.Urkle(k=8.0)
  encoders = [tiny_encoder(size, loc="dense_sphere") for size in (6, 3)]
  one, other = (tiny_trainer(scheme, encoder=encoder) for encoder in encoders)
  assert one.robustness.weight == pytest.approx(8.0 * 0.25**2 / 6)
  assert other.robustness.weight == scheme.weight == pytest.approx(8.0 * 0.25**2 / 3)


@pytest.mark.parametrize("eager", [True, *slow(False)])
def test_same_seed_same_weights_and_another_seed_others(eager):
  runs = []
  for seed in (1, 1, 2):
    trainer = _trainer(seed=seed)
    trainer.run_eagerly = eager
    trainer.fit(noise_views(), verbose=0)
    runs.append(_weights(trainer))
  same(runs[0], runs[1])
  assert any(np.abs(a - b).max() > 1e-6 for a, b in zip(runs[0], runs[2], strict=True))


def _state(trainer):
  """All that a step changes, except for the count of steps and the reported figures."""
  own = [v for v in trainer.variables if v is not trainer.skips]
  reported = {id(v) for v in trainer.metrics_variables}
  slots = [v for v in trainer.optimizer.variables if v is not trainer.optimizer.iterations]
  return [v.numpy() for v in own + slots if id(v) not in reported]


def test_a_step_exchanges_no_more_than_it_must(mirrored, monkeypatch):
  """Between replicas the time of a step is that of its exchanges, however little they carry."""
  with mirrored.scope():
    trainer = _trainer(optimizer=keras.optimizers.SGD(0.05))
  kinds = [type(layer) for layer in trainer._flatten_layers()]
  norms = kinds.count(keras.layers.BatchNormalization)
  shapes = []
  exchange = tf.distribute.ReplicaContext.all_reduce

  def counted(self, operation, value, *args, **kwargs):
    shapes.append([part.shape for part in tf.nest.flatten(value)])
    return exchange(self, operation, value, *args, **kwargs)

  monkeypatch.setattr(tf.distribute.ReplicaContext, "all_reduce", counted)
  trainer.fit(noise_views(steps=1), steps_per_epoch=1, verbose=0)
  assert norms == 4
  # On each of two replicas: every norm's moments and their gradient; the gathered projections and
  # their gradient; and once the gradient of all weights, with the numbers that are reported.
  assert len(shapes) == 2 * (2 * norms + 2 + 1)
  weights = [v.shape for v in trainer.trainable_variables]
  assert shapes[-1] == [*weights, len(trainer.means.names) - 1]


def test_a_step_needs_a_finite_loss_and_a_finite_gradient():
  pairs = [(one, other) for one in (1.0, np.nan, np.inf) for other in (2.0, np.nan, -np.inf)]
  assert [bool(guard.finite(*pair)) for pair in pairs] == [True] + [False] * 8


@pytest.mark.parametrize("replicas", [1, *slow(2)])
def test_a_step_that_is_not_finite_moves_nothing(mirrored, replicas):
  scope = mirrored if replicas == 2 else tf.distribute.get_strategy()
  with scope.scope():
    trainer = _trainer(robustness.ACL(form="ds", ema=0.9))  # two kinds of statistics, and averages
  views = next(iter(noise_views(steps=1)))["views"].numpy()
  broken = views.copy()
  broken[0, 0, 0, 0] = np.nan  # one pixel, on one of the replicas
  counts = []

  def fit(images):
    row = trainer.fit(tf.data.Dataset.from_tensors({"views": images}), verbose=0).history
    counts.append([*trainer.skips.numpy(), int(trainer.optimizer.iterations.numpy())])
    return row

  fit(views)
  before = _state(trainer)
  for _ in range(2):
    row = fit(broken)
  same(_state(trainer), before)
  assert np.isnan(row["loss"]).all()  # the mean of no step
  row = fit(views)
  assert all(np.isfinite(values).all() for values in row.values())
  after = _state(trainer)
  assert all(np.isfinite(values).all() for values in after)
  assert sum((a != b).any() for a, b in zip(after, before, strict=True)) > len(before) / 2
  fit(broken)
  # [skipped, in a row, in the longest row, its last step, steps]
  assert counts == [[0, 0, 0, -1, 1], [1, 1, 1, 1, 2], [2, 2, 2, 2, 3], [2, 0, 2, 2, 4]] + [
    [3, 1, 2, 2, 5]
  ]


@pytest.mark.full
@pytest.mark.parametrize(
  "options", [{}, {"clip_norm": 0.05}, {"on_device": True}, {"clip_norm": 0.05, "on_device": True}]
)
def test_one_replica_and_two_give_the_same_step(mirrored, options):
  options = dict(options)
  data = noise_views()
  if options.pop("on_device", False):
    images = np.random.default_rng(0).integers(0, 256, (24, 8, 8, 1), np.uint8)
    data = tf.data.Dataset.from_tensor_slices({"image": images}).batch(8, drop_remainder=True)
    options["augment"] = augment.SimCLR(strength=0.5)
  results, weights = [], []
  for scope in (tf.distribute.get_strategy(), mirrored):
    with scope.scope():
      trainer = _trainer(**options)
    results.append(trainer.fit(data, verbose=0).history)
    weights.append(_weights(trainer))
  same(*weights, atol=2e-5, rtol=2e-5)
  for name in ("loss", "nt_xent", "kl", "attack_objective", "gradient_norm"):
    np.testing.assert_allclose(results[0][name], results[1][name], rtol=2e-4)


@pytest.mark.parametrize("kind", [pretexts.SimSiam, *slow(pretexts.SimCLR)])
def test_batches_that_do_not_divide_among_replicas_end_in_one_line(mirrored, kind):
  """SimCLR ended in a traceback, and the others took a step of other weights and noise."""
  with mirrored.scope():
    trainer = tiny_trainer(robustness.Plain(), pretext=kind(projector=8, projection=4))
  views = tuple(np.random.default_rng(0).uniform(size=(2, 8, 8, 8, 1)).astype("float32"))
  trainer.fit(views, batch_size=4, verbose=0)
  uneven = tuple(images[:7] for images in views)
  words = "does not divide evenly among the replicas & drop a smaller last one"
  refuses(words, trainer.fit, uneven, batch_size=4, verbose=0)


def test_clipping_bounds_the_step():
  rate = 0.5
  trainer = _trainer(optimizer=keras.optimizers.SGD(rate), clip_norm=0.01)
  weights = lambda: np.concatenate([np.ravel(v) for v in trainer.trainable_variables])  # noqa: E731
  before = weights()
  trainer.fit(noise_views(steps=1), verbose=0)
  moved = np.linalg.norm(weights() - before)
  assert trainer.get_metrics_result()["gradient_norm"] > 0.01
  np.testing.assert_allclose(moved, rate * 0.01, rtol=1e-3)
  refuses("clip_norm must be above 0", _trainer, clip_norm=-1.0)


@pytest.mark.full
def test_augmentation_in_the_step_is_that_of_the_pipeline():
  source = sources.load("digits", "train[:64]")
  recipe = augment.SimCLR(strength=0.5, flip=False)
  weights = []
  for on_device in (False, True):
    trainer = _trainer(seed=3, augment=recipe if on_device else None)
    data = pipeline.views(source, recipe, 16, seed=3, on_device=on_device)
    trainer.fit(data, steps_per_epoch=3, verbose=0)
    weights.append(_weights(trainer))
  same(*weights, atol=1e-5, rtol=1e-5)


def test_beta_warms_up():
  trainer = _trainer(robustness.Urkle(beta=1.0), beta_warmup=4)
  for step in range(5):
    trainer.reset_metrics()
    trainer.train_step(next(iter(noise_views(steps=1))))
    row = trainer.get_metrics_result()
    share = min(1.0, (step + 1) / 4)
    np.testing.assert_allclose(row["loss"], row["nt_xent"] + share * row["kl"], rtol=1e-4)


def test_plain_simclr_runs_no_attack_and_no_noise():
  trainer = _trainer(robustness.Plain())
  assert trainer.attack is None
  trainer.fit(noise_views(), verbose=0)
  scale = trainer.encoder.network.get_layer("raw_scale")
  assert not scale.kernel.numpy().any()  # a scale that nothing uses is not moved
  assert "kl" not in trainer.get_metrics_result()


def test_a_regularizer_of_the_backbone_joins_the_loss():
  dense = keras.layers.Dense(6, kernel_regularizer=keras.regularizers.L2(0.5))
  images = keras.Input((8, 8, 1))
  encoder = networks.GaussianEncoder(keras.Model(images, dense(keras.layers.Flatten()(images))))
  trainer = _trainer(robustness.Plain(), encoder=encoder)
  added = 0.5 * np.sum(np.square(dense.kernel.numpy()))
  values = trainer.step(next(iter(noise_views(steps=1))))
  np.testing.assert_allclose(values["loss"], values["nt_xent"] + added, rtol=1e-5)


@pytest.mark.parametrize("kind", ["acl", *slow("simclr", "supervised", "acl of another")])
def test_the_average_of_every_scheme_is_the_plain_loop(kind):
  encoder = tiny_encoder()
  task = pretexts.Supervised(width=4, outputs=3)
  if kind != "supervised":
    task = pretexts.SimCLR(projector=8, projection=4)
  scheme = robustness.Urkle(beta=0.1)
  if kind.startswith("acl"):
    scheme = robustness.ACL(ema=0.6 if kind == "acl" else 0.1)
  attack = attacks.PGD(attacks.Linf(0.1), steps=1)
  given = None if kind == "acl" else 0.6  # which comes before acl's
  trainer = urkle_tf.Trainer(encoder, task, scheme, attack, ema=given)
  trainer.compile(keras.optimizers.SGD(0.05))
  models = [encoder, task.head] if kind == "supervised" else [encoder]
  online = lambda: [w.numpy() for model in models for w in model.weights]  # noqa: E731
  expected = None
  for m, views in zip((0.0, 1 / 2, 0.6, 0.6), noise_views(steps=4), strict=True):
    labels = np.arange(8, dtype="int32") % 3
    trainer.train_step({"views": views["views"][:, : task.views], "label": labels})
    weights = online()
    expected = [
      m * old + (1 - m) * new for old, new in zip(expected or weights, weights, strict=True)
    ]
  with trainer.averaged():
    same(online(), expected, atol=1e-5, rtol=1e-5)
  same(online(), weights)
  assert max(np.abs(one - other).max() for one, other in zip(weights, expected)) > 1e-3


@pytest.mark.parametrize("attack", [None, "pgd", 8 / 255])
def test_an_adversarial_scheme_needs_an_attack(attack):
  encoder = networks.GaussianEncoder(networks.convnet((8, 8, 1), 4, 2), 6, loc="dense")
  cell = encoder, pretexts.SimCLR(), robustness.Urkle(), attack
  refuses(f"needs an attack, got {attack!r}", urkle_tf.Trainer, *cell)


BYTES = tf.zeros([4, 8, 8, 1], tf.uint8)
PIXELS = tf.zeros([4, 8, 8, 1])  # in [0, 1]
TO_AUGMENT = 'give {"image": images}, uint8'


@pytest.mark.parametrize(
  "recipe, batch, words",
  [
    (None, {"image": BYTES}, 'no "views"'),
    (None, {"views": PIXELS}, "of shape [n, v, h, w, c] & got (4, 8, 8, 1)"),
    # `fit(images, labels)`, as of any Keras model.
    (None, (PIXELS, tf.zeros([4])), 'and "label" [n] & got (4, 8, 8, 1), (4,)'),
    # Of `fit(images)`: each step was skipped, and the loss shown was 0.
    (None, PIXELS, "simclr needs 2 views of each image, got 1"),
    ("crop(padding=1)", BYTES, TO_AUGMENT),  # they would be views, not augmented
    ("crop(padding=1)", {"images": BYTES}, TO_AUGMENT),
    ("crop(padding=1)", {"image": PIXELS}, TO_AUGMENT),  # they were divided by 255
  ],
)
def test_batches_of_another_form_end_in_one_line(recipe, batch, words):
  refuses(words, _trainer(augment=recipe and augment.from_spec(recipe)).step, batch)


@pytest.mark.parametrize("adversarial", [True, False])
def test_views_from_0_to_255_end_in_one_line(adversarial):
  """Attacks clipped them to [0, 1], and the KL of the black and white remains was 0."""
  views = tuple(255 * np.random.default_rng(0).uniform(size=(2, 4, 8, 8, 1)).astype("float32"))
  trainer = _trainer() if adversarial else urkle_tf.Trainer(tiny_encoder(), pretexts.SimCLR())
  trainer.compile()
  words = "outside the bounds, 0 to 1: rescale"
  refuses(words, trainer.fit, views, batch_size=4, verbose=0)
  trainer.compile(jit_compile=True)
  trainer.fit(views, batch_size=4, verbose=0)
  assert int(trainer.skips[0]) == 1


def test_validation_data_end_in_one_line():
  """Keras ended the training after its first epoch, and asked for a loss in `compile`."""
  trainer, views = _trainer(), noise_views(steps=1)
  refuses("has no validation", trainer.fit, views, validation_data=views, verbose=0)
  assert int(trainer.optimizer.iterations.numpy()) == 0
  refuses("has no validation", trainer.evaluate, views, verbose=0)


def test_batches_of_all_forms_are_the_same_views():
  trainer, pair = _trainer(), np.random.default_rng(0).uniform(size=(2, 4, 8, 8, 1))
  whole = np.stack(pair, 1)
  forms = tuple(pair), (tuple(pair),), {"views": whole}
  # As `fit` and as `train_on_batch` give them.
  for batch in (*forms, *((form, None, None) for form in forms)):
    views, _ = trainer.views(batch, 0)
    assert views.dtype == tf.float32
    np.testing.assert_array_equal(views, whole.astype("float32"))
  views, _ = trainer.views(tf.constant(pair[0], tf.float32), 0)
  np.testing.assert_array_equal(views, pair[0][:, None].astype("float32"))


@pytest.mark.parametrize(
  "scheme, pretext",
  [
    (robustness.RoCL(), None),
    (robustness.ACL(), None),
    (robustness.AdversarialTraining(), pretexts.Supervised(outputs=3)),
    (robustness.Plain(), pretexts.SimSiam(projector=8, projection=8, predictor=4)),
    (robustness.Plain(), pretexts.VAE(width=4, layers=2)),
  ],
)
def test_a_further_view_that_would_be_an_adversary_ends_in_one_line(scheme, pretext):
  trainer = _trainer(scheme, pretext=pretext)
  needed = trainer.pretext.views
  batch = {"views": tf.zeros([4, needed + 1, 8, 8, 1]), "label": tf.zeros([4], tf.int64)}
  refuses(f"needs {needed} views of each image, got {needed + 1}", trainer.step, batch)


def test_a_last_batch_of_one_image_changes_nothing():
  """It has no negatives: the loss shown was -3e8."""
  views = np.random.default_rng(0).uniform(size=(17, 2, 8, 8, 1)).astype("float32")
  rows, skips = [], []
  for count in (16, 17):
    trainer = _trainer(robustness.Plain())
    data = tf.data.Dataset.from_tensor_slices({"views": views[:count]}).batch(8)
    rows.append(trainer.fit(data, verbose=0).history)
    skips.append(int(trainer.skips[0]))
  assert rows[0] == rows[1]
  assert skips == [0, 1]

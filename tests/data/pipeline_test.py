"""Batches: what is in them, and that (seed, step) decides it, through any interruption."""

import numpy as np
import pytest
import tensorflow as tf
from alike import same
from cases import DATA_DIR, needs_data, refuses, slow
from PIL import Image

from urkle_tf.data import augment, augmix, pipeline, sources


@pytest.fixture(scope="module")
def digits():
  return sources.load("digits", examples=22)


def take(dataset, count):
  return list(dataset.take(count).as_numpy_iterator())


def check_resume(source, recipe, batch_size=5, starts=None, **options):
  """Starts anew at steps within epochs and at their border, and expects the same bits."""
  steps = source.size // batch_size
  whole = take(pipeline.views(source, recipe, batch_size, 3, **options), 2 * steps + 1)
  for start in starts or (steps - 1, steps + 1):
    resumed = pipeline.views(source, recipe, batch_size, 3, start_step=start, **options)
    for one, two in zip(whole[start:], take(resumed, len(whole) - start), strict=True):
      assert one.keys() == two.keys()
      same(one.values(), map(two.get, one))
  return whole


@pytest.mark.parametrize(
  "recipe", ["simclr", "crop(padding=1)", "none", *slow("augmix", "randaugment")]
)
def test_resume_in_mid_epoch(digits, recipe):
  # keras-cv takes seconds to trace: one start, in the second epoch, will do there.
  starts = (4,) if recipe == "randaugment" else None
  whole = check_resume(digits, augment.from_spec(recipe), 7, starts, labels=True)
  assert whole[0]["views"].shape == (7, 2, 8, 8, 1)
  if recipe != "none":
    assert np.abs(whole[0]["views"][:, 0] - whole[0]["views"][:, 1]).max() > 0.01


@needs_data
def test_labels_are_those_of_the_split_in_memory_or_not(monkeypatch):
  split = "train[100:130]"
  whole = sources.load("cifar10", split, data_dir=DATA_DIR)
  monkeypatch.setattr(sources, "IN_MEMORY_BYTES", 0)
  stream = sources.load("cifar10", split, data_dir=DATA_DIR)
  assert stream.labels is None
  np.testing.assert_array_equal(pipeline.labels(stream), whole.labels)
  assert pipeline.labels(whole) is whole.labels


def test_resume_on_device(digits):
  check_resume(digits, augment.SimCLR(), starts=(0, 1, 3, 4, 7), on_device=True)


def test_resume_of_a_large_folder(tmp_path, monkeypatch, rng):
  for i in range(17):
    path = tmp_path / f"class {i % 2}" / f"{i}.png"
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(rng.integers(0, 255, (9, 7 + i, 3), np.uint8)).save(path)
  monkeypatch.setattr(sources, "IN_MEMORY_BYTES", 0)
  source = sources.load(f"folder:{tmp_path}", "all", image_size=8)
  assert isinstance(source, sources.FileSource)
  check_resume(source, augment.Crop(), labels=True)


@needs_data
def test_resume_of_a_stream(monkeypatch):
  monkeypatch.setattr(sources, "IN_MEMORY_BYTES", 0)
  monkeypatch.setattr(sources, "_SHUFFLE_BLOCK", 30)
  source = sources.load("cifar10", "train[:40]+test[100:150]", data_dir=DATA_DIR)
  assert isinstance(source, sources.StreamSource)
  check_resume(source, augment.Crop(), batch_size=40, labels=True)


def test_another_seed_gives_other_batches(digits):
  recipe = augment.Crop()
  one, two = (take(pipeline.views(digits, recipe, 5, seed), 1)[0] for seed in (1, 2))
  assert (one["image"] != two["image"]).any()
  assert np.abs(one["views"] - two["views"]).max() > 0.1
  # And another step gives the same image other views.
  alike = sources.ArraySource(np.repeat(digits.images[:1], 10, 0), name="alike", split="train")
  one, two = take(pipeline.views(alike, recipe, 5, 0), 2)
  assert np.abs(one["views"] - two["views"]).max() > 0.1
  # More than 31 bits of the seed count; a pair is a seed, too.
  one, two = (take(pipeline.views(digits, recipe, 5, seed), 1)[0] for seed in (1, 1 + 2**31))
  assert (one["image"] != two["image"]).any()
  (pair,) = take(pipeline.views(digits, recipe, 5, np.int32([1, 0])), 1)
  same(one.values(), map(pair.get, one))


def test_each_worker_makes_its_rows(digits):
  make = lambda part: take(pipeline.views(digits, augment.SimCLR(), 6, 0, part=part), 2)  # noqa: E731
  halves = [make(pipeline.Part(share=(worker, 2))) for worker in range(2)]
  for step, whole in enumerate(make(pipeline.WHOLE)):
    for name, rows in whole.items():
      np.testing.assert_allclose(np.concatenate([half[step][name] for half in halves]), rows)


def test_the_first_images_are_as_many_as_asked():
  images, labels = pipeline.first(sources.load("digits"), 300)  # of batches of 250
  assert len(images) == len(labels) == 300


def test_an_epoch_shows_each_image_once(digits):
  batches = take(pipeline.views(digits, augment.Identity(), 11, 0, views=1, labels=True), 6)
  known = {image.tobytes(): label for image, label in zip(digits.images, digits.labels)}
  assert len(known) == 22
  orders = []
  for both in zip(batches[::2], batches[1::2], strict=True):
    images, labels = (np.concatenate([batch[k] for batch in both]) for k in ("image", "label"))
    keys = [np.rint(image * 255).astype(np.uint8).tobytes() for image in images]
    assert [known[key] for key in keys] == labels.tolist()
    assert set(keys) == set(known)
    orders.append(keys)
  assert orders[0] != orders[1] != orders[2]


def test_what_is_left_over_is_dropped(digits):
  batches = take(pipeline.views(digits, augment.Identity(), 5, 0), 4)
  shown = {image.tobytes() for batch in batches for image in batch["image"]}
  assert len(shown) == 20  # of 22, each once
  for batch in batches:
    np.testing.assert_array_equal(batch["views"], np.stack([batch["image"]] * 2, axis=1))


def test_shapes_are_static_and_batches_endless(digits):
  dataset = pipeline.views(digits, augment.SimCLR(), 5, 0, views=3, labels=True)
  spec = dataset.element_spec
  assert spec["views"] == tf.TensorSpec([5, 3, 8, 8, 1], tf.float32)
  assert spec["image"] == tf.TensorSpec([5, 8, 8, 1], tf.float32)
  assert spec["label"] == tf.TensorSpec([5], tf.int64)
  assert dataset.cardinality() == tf.data.INFINITE_CARDINALITY
  (batch,) = take(dataset, 1)
  assert batch["views"].shape == (5, 3, 8, 8, 1)
  spec = pipeline.views(digits, augment.SimCLR(), 5, 0, on_device=True).element_spec
  assert spec == {"image": tf.TensorSpec([5, 8, 8, 1], tf.uint8)}


@pytest.mark.parametrize("name", ["crop", *slow("simclr", "affine", "none")])
def test_device_gives_what_the_host_gives(name):
  recipe = augment.from_spec(name)
  images = np.random.default_rng(0).integers(0, 255, (16, 10, 10, 3), np.uint8)
  source = sources.ArraySource(images, name="random", split="train")
  host = take(pipeline.views(source, recipe, 8, seed=5, views=3), 5)
  raw = take(pipeline.views(source, recipe, 8, seed=5, views=3, on_device=True), 5)

  def on_device(batch, step):
    seed = pipeline.augmentation_seed(5, step)
    return pipeline.augment_on_device(recipe, batch, seed, views=3)

  plain, compiled = tf.function(on_device), tf.function(on_device, jit_compile=True)
  for step in range(5):
    batch, expected = raw[step]["image"], host[step]["views"]
    np.testing.assert_allclose(plain(batch, tf.constant(step)), expected, atol=1e-6)
    np.testing.assert_allclose(compiled(batch, tf.constant(step)), expected, atol=2e-6)
  any_number = [tf.TensorSpec([None, 10, 10, 3], tf.uint8)]
  unknown = tf.function(lambda batch: on_device(batch, 4), input_signature=any_number)
  np.testing.assert_allclose(unknown(raw[4]["image"]), host[4]["views"], atol=1e-6)


def test_two_replicas_augment_as_one_does(on_two):
  recipe = augment.SimCLR()
  images = np.random.default_rng(0).integers(0, 255, (6, 8, 8, 3), np.uint8)
  seed = pipeline.augmentation_seed(5, 7)
  alone = pipeline.augment_on_device(recipe, images, seed)
  both = on_two(lambda half: pipeline.augment_on_device(recipe, half, seed), images)
  np.testing.assert_allclose(both, alone, atol=1e-6)


def test_replicas_share_a_batch_in_contiguous_rows(digits, mirrored):
  dataset = pipeline.views(digits, augment.SimCLR(), 6, seed=1)
  (expected,) = take(dataset, 1)
  parts = next(iter(mirrored.experimental_distribute_dataset(dataset)))
  views = np.concatenate(mirrored.experimental_local_results(parts["views"]))
  np.testing.assert_array_equal(views, expected["views"])


def test_batches_give_all_in_order(digits):
  dataset = pipeline.batches(digits, 8)
  batches = list(dataset.as_numpy_iterator())
  assert [len(batch["image"]) for batch in batches] == [8, 8, 6]
  assert dataset.cardinality() == 3
  assert set(batches[0]) == {"image", "label"}
  images = np.concatenate([batch["image"] for batch in batches])
  np.testing.assert_array_equal(images, digits.images.astype(np.float32) / 255)
  np.testing.assert_array_equal(np.concatenate([b["label"] for b in batches]), digits.labels)


def test_no_iterator_waits_for_an_autotuner_when_it_ends(digits):
  views = pipeline.views(digits, augment.Identity(), 5, 0)
  for dataset in (views, pipeline.batches(digits, 8), digits.batches(8), digits.epoch()):
    assert dataset.options().autotune.enabled is False


def test_mistakes(digits):
  unlabelled = sources.ArraySource(digits.images, name="mine", split="train")
  plain = augment.Identity()
  refuses("23 & 22 & digits", pipeline.views, digits, plain, 23, 0)
  refuses("batch_size & 0", pipeline.views, digits, plain, 0, 0)
  refuses("mine & labels", pipeline.views, unlabelled, plain, 2, 0, labels=True)
  refuses("AugMix & device", pipeline.views, digits, augmix.AugMix(), 2, 0, on_device=True)
  assert set(take(pipeline.batches(unlabelled, 2), 1)[0]) == {"image"}

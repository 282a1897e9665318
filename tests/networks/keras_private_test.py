"""Keras's private parts: refused in one line where they are missing."""

import keras
import pytest
from cases import refuses
from commands import ROOT

from urkle_tf.data import keras_cv_recipes
from urkle_tf.networks import keras_private


@pytest.mark.parametrize("number", range(len(keras_private._PARTS)))
def test_a_keras_without_a_part_is_refused_in_one_line(monkeypatch, number):
  """Its steps would be too long in silence, for one, and nobody would know."""
  keras_private.check()
  place, name = keras_private._PARTS[number]
  parts = list(keras_private._PARTS)
  parts[number] = (place, f"{name}_of_old")
  monkeypatch.setattr(keras_private, "_PARTS", parts)
  works = f"pip install 'keras{keras_private.WORKS}'"
  words = f"keras.{place}.{name}_of_old & {keras.__version__} & {works}"
  refuses(words, keras_private.check)


@pytest.mark.parametrize("name", ["jax", "torch"])
def test_a_keras_on_another_backend_is_refused_in_one_line(monkeypatch, name):
  monkeypatch.setattr(keras.config, "backend", lambda: name)
  refuses(f"runs on {name} & KERAS_BACKEND=tensorflow", keras_private.check)


def test_a_keras_cv_without_its_generators_is_refused_in_one_line(monkeypatch):
  monkeypatch.setattr(keras_cv_recipes.RandAugment, "_layer", lambda self: keras.layers.ReLU())
  refuses(f"'keras-cv{keras_cv_recipes.WORKS}'", keras_cv_recipes.RandAugment)


def test_setup_asks_for_the_same_versions():
  text = (ROOT / "setup.py").read_text("utf-8")
  assert f'"keras{keras_private.WORKS}"' in text
  assert f'"keras-cv{keras_cv_recipes.WORKS}"' in text

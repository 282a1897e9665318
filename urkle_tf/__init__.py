"""Robust image encoders learned without labels, in TensorFlow and Keras 3.

To train and export an encoder:

    encoder = urkle_tf.GaussianEncoder(backbone=any_keras_model)
    trainer = urkle_tf.Trainer(encoder, pretext=urkle_tf.pretexts.SimCLR(),
                               robustness=urkle_tf.robustness.Urkle(k=8),
                               attack=urkle_tf.attacks.PGD(urkle_tf.attacks.Linf(epsilon=8 / 255)))
    trainer.compile(optimizer="sgd")
    trainer.fit(views, epochs=100)
    urkle_tf.export_encoder(encoder, "encoder")
"""

import importlib

__version__ = "0.1.0"

# Modules are imported on first use, so that `--help` and `--version` need no TensorFlow.
_WRITERS = ("export_encoder", "export_classifier", "export_regressor")
_READERS = ("load_encoder", "load_classifier", "load_regressor")
_BY_MODULE = {
  "networks": ("GaussianEncoder",),
  "networks.presets": ("presets",),
  "training.trainer": ("Trainer",),
  "training.pretraining": ("pretrain",),
  "training.robustify": ("robustify",),
  "downstream.adapting": ("adapt",),
  "downstream.embeddings": ("represent",),
  "evaluation.assess": ("assess",),
  "regulariser": ("UrkleRegularizer", "kl_robustness"),
  "export": (*_WRITERS, *_READERS),
  "export.hub": ("model_card", "push_to_hub"),
  "export.torch_weights": ("import_torch_state",),
  "export.torch_vits": ("import_torch_vit",),
  "errors": ("UserError",),
}
_NAMES = {name: module for module, names in _BY_MODULE.items() for name in names}
_MODULES = {name: name for name in ("attacks", "data", "networks", "pretexts", "robustness")}
_MODULES["trust"] = "networks.saved.trust"

__all__ = ["__version__", *_MODULES, *_NAMES]


def __getattr__(name):
  if name in _MODULES:
    return importlib.import_module(f"urkle_tf.{_MODULES[name]}")
  if name in _NAMES:
    return getattr(importlib.import_module(f"urkle_tf.{_NAMES[name]}"), name)
  raise AttributeError(f"module 'urkle_tf' has no attribute {name!r}")


def __dir__():
  return sorted(__all__)

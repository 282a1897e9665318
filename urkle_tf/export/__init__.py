"""Exports: folders with a SavedModel, stock Keras files and what they are.

A folder needs neither this package nor TensorFlow Probability to be used:

    saved_model.pb, variables/   the SavedModel; its signatures: `export_encoder` and so on
    network.keras                images -> {"loc", "scale"}, to train on (stock Keras layers)
    head.keras                   z -> logits (classifiers) or numbers (regressors)
    metadata.json                image size, classes, threat model, data set, settings, versions
    README.md                    the model card, for people
    clean/                       of an encoder with dual batch norm: another such folder, with the
                                 batch norms of clean images

Encoders and predictors are written and read here; below them lie what a folder says of itself
(`description`), its Keras files, its signatures, and how it comes to its place whole (`folders`).
"""

from urkle_tf.export.description import (
  FORMAT_VERSION,
  fingerprint,
  read_metadata,
  settings_without_paths,
  versions,
)
from urkle_tf.export.encoders import ExportedEncoder, export_encoder, load_encoder
from urkle_tf.export.predictors import (
  export_classifier,
  export_regressor,
  load_classifier,
  load_regressor,
)

__all__ = [
  "FORMAT_VERSION",
  "ExportedEncoder",
  "export_classifier",
  "export_encoder",
  "export_regressor",
  "fingerprint",
  "load_classifier",
  "load_encoder",
  "load_regressor",
  "read_metadata",
  "settings_without_paths",
  "versions",
]

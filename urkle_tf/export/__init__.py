"""Exports: folders with a SavedModel, stock Keras files and metadata.

Using a folder needs neither this package nor TensorFlow Probability:

    saved_model.pb, variables/   the SavedModel; its signatures: `export_encoder` and so on
    network.keras                images -> {"loc", "scale"}, to train on (stock Keras layers)
    head.keras                   z -> logits (classifiers) or numbers (regressors)
    metadata.json                image size, classes, threat model, data set, settings, versions
    README.md                    the model card
    clean/                       of an encoder with dual batch norm: another such folder, with the
                                 batch norms of clean images

Modules: `encoders` and `predictors` write the folders, `description` writes the metadata,
`keras_files` and `signatures` write the models, and `folders` moves a folder into place once it is
whole.  `networks.saved` reads folders.
"""

import urkle_tf.regulariser  # noqa: F401  (a .keras file may hold its layer)
from urkle_tf.export.description import fingerprint as fingerprint
from urkle_tf.export.description import settings_without_paths as settings_without_paths
from urkle_tf.export.description import versions as versions
from urkle_tf.export.encoders import export_encoder as export_encoder
from urkle_tf.export.predictors import export_classifier as export_classifier
from urkle_tf.export.predictors import export_regressor as export_regressor
from urkle_tf.export.predictors import load_classifier as load_classifier
from urkle_tf.export.predictors import load_regressor as load_regressor
from urkle_tf.networks.encoders import ExportedEncoder as ExportedEncoder
from urkle_tf.networks.saved.exports import FORMAT_VERSION as FORMAT_VERSION
from urkle_tf.networks.saved.exports import load_encoder as load_encoder
from urkle_tf.networks.saved.exports import read_metadata as read_metadata

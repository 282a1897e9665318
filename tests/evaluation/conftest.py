"""Models that several evaluations share."""

import pytest
from small_models import small_classifier, small_encoder

from urkle_tf import export


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
  """A folder of untrained models of digits.

  It holds "encoder" (l2, 0.5) and classifiers on it (linf, 0.1): "sampled", "deterministic" with
  the same head, and "other", sampled with another head.
  """
  folder, encoder = tmp_path_factory.mktemp("exported"), small_encoder()
  export.export_encoder(encoder, folder / "encoder", {"norm": "l2", "epsilon": 0.5})
  metadata = {"norm": "linf", "epsilon": 0.1, "dataset": "digits"}
  for name, seed in (("sampled", 0), ("deterministic", 0), ("other", 1)):
    model = small_classifier(encoder, seed)
    model.stochastic = name != "deterministic"
    export.export_classifier(model, folder / name, metadata)
  return folder

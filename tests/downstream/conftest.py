"""The encoder that protocols adapt."""

import pytest
from small_models import small_encoder

from urkle_tf import export


@pytest.fixture(scope="package")
def encoder(tmp_path_factory):
  """The folder of an untrained encoder of digits, six dimensions, as of a training with Urkle."""
  settings = {"pretext": "simclr", "robustness": "urkle(beta=0.1)"}
  metadata = {"norm": "linf", "epsilon": 0.05, "stochastic": True, "settings": settings}
  folder = tmp_path_factory.mktemp("adapted") / "encoder"
  return export.export_encoder(small_encoder(), folder, metadata)

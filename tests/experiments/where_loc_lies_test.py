"""Where loc lies: what the commands depend on."""

import types

from experiments import pages
from experiments import where_loc_lies as script


def test_a_student_depends_on_its_teacher(tmp_path):
  options = {"work": str(tmp_path), "pretext": "simclr", "start": False, "k": 8.0, "epochs": 1}
  options |= {"data_dir": None, "encoder": "convnet", "extra_train": ""}
  of = lambda cell: script.stages(cell, "dense", 0, types.SimpleNamespace(**options))[0].of  # noqa: E731
  assert of("distil_urkle") == ""
  pages.write(tmp_path / "simclr-dense-0" / "encoder" / "metadata.json", {"fingerprint": "12ab"})
  assert (of("distil_urkle"), of("rocl")) == ("12ab", "")

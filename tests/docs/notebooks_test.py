"""The notebooks, from top to bottom."""

import re

import pytest
from commands import ROOT

NOTEBOOKS = sorted((ROOT / "examples" / "notebooks").glob("*.ipynb"))


@pytest.mark.full
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda notebook: notebook.stem)
def test_it_runs_from_top_to_bottom(notebook, tmp_path):
  nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
  pytest.importorskip("ipykernel")
  read = nbformat.read(notebook, as_version=4)
  place = {"metadata": {"path": str(tmp_path)}}
  nbclient.NotebookClient(read, timeout=1000, kernel_name="python3", resources=place).execute()
  outputs = [output for cell in read.cells for output in cell.get("outputs", ())]
  said = "".join(output.get("text", "") + str(output.get("data", "")) for output in outputs)
  assert re.search(r"\d%|nats|image/png", said)  # each ends with a figure or a picture

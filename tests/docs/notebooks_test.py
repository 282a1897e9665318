"""The notebooks: what each must have, and all of them from top to bottom."""

import ast
import json
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "examples" / "notebooks").glob("*.ipynb"))


def cells(notebook, kind):
  """The sources of a notebook's cells of a kind, in order."""
  found = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
  return ["".join(cell["source"]) for cell in found if cell["cell_type"] == kind]


def test_there_are_four():
  assert len(NOTEBOOKS) == 4


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda notebook: notebook.stem)
def test_it_starts_by_installing_and_its_links_lead_somewhere(notebook):
  first, *rest = cells(notebook, "code")
  assert "SOURCE = None" in first
  assert "%pip install --quiet {SOURCE}" in first
  for source in rest:
    ast.parse(source)
  for text in cells(notebook, "markdown"):
    for target in re.findall(r"\]\(([^)\s#]+)[^)]*\)", text):
      assert (notebook.parent / target).exists(), target


@pytest.mark.full
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda notebook: notebook.stem)
def test_it_runs_from_top_to_bottom(notebook, tmp_path):
  nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
  pytest.importorskip("ipykernel")
  read = nbformat.read(notebook, as_version=4)
  place = {"metadata": {"path": str(tmp_path)}}
  nbclient.NotebookClient(read, timeout=1000, kernel_name="python3", resources=place).execute()
  said = "".join(
    output.get("text", "") + str(output.get("data", ""))
    for cell in read.cells
    for output in cell.get("outputs", ())
  )
  assert re.search(r"\d%|nats|image/png", said)  # each ends with a figure or a picture

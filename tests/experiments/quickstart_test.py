"""The quickstart: it ends with its table and its page, and it resumes."""

import json
import re
import sys

import pytest

from experiments import quickstart, table


@pytest.mark.full
@pytest.mark.timeout(900)
def test_it_ends_with_a_table_and_a_page_and_resumes(tmp_path, monkeypatch, capsys):
  tiny = ["--epochs=1", "--attack_steps=1", "--encoder=convnet(width=4, layers=2)"]
  monkeypatch.setattr(quickstart, "TRAINED", tiny)
  monkeypatch.setattr(quickstart, "MEASURED", ["--attacks=pgd(steps=2)", "--examples=20"])
  monkeypatch.setattr(sys, "argv", ["quickstart.py", str(tmp_path)])
  monkeypatch.chdir(tmp_path)
  quickstart.main()
  first = capsys.readouterr().out
  names = {"SimCLR": "simclr", "SimCLR+Urkle": "simclr_urkle"}
  reports = {
    system: json.loads((tmp_path / f"{name}-report" / "report.json").read_text("utf-8"))
    for system, name in names.items()
  }
  shown = table.table({system: [report] for system, report in reports.items()})
  assert shown in first
  assert f"Open this page: {(tmp_path / 'index.html').as_uri()}" in first
  page = (tmp_path / "index.html").read_text("utf-8")
  assert page.count("data:image/png;base64,") == 2
  for system, report in reports.items():
    row = re.search(rf"<tr>.*?{re.escape(system)}</th>.*?</tr>", page)[0]
    assert f"{100 * report['clean']['accuracy']:.2f}" in row
  failed = [check["name"] for check in reports["SimCLR+Urkle"]["checks"] if not check["passed"]]
  assert (", ".join(failed) if failed else "All checks for masked gradients passed") in page
  kept = [*tmp_path.rglob("step_*.npz"), *tmp_path.rglob("report.json")]
  assert len(kept) >= 4
  written = [file.stat().st_mtime_ns for file in kept]
  quickstart.main()
  assert shown in capsys.readouterr().out
  assert [file.stat().st_mtime_ns for file in kept] == written

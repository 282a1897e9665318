"""The report: report.json, report.md, report.html and figures, all from one dict."""

import json

from urkle_tf import errors
from urkle_tf.evaluation import measurements
from urkle_tf.evaluation.report.document import Glance, Heading, Items, Picture, Text, markdown
from urkle_tf.evaluation.report.page import page
from urkle_tf.output import files

PAGE = "report.html"
_INTRO = (
  "Accuracies are in percent with their 95% interval. Robust accuracy is that under the attacks "
  "named here: an upper bound on the accuracy under any attack, not a guarantee."
)


def finished(folder, model, fingerprint, html=False):
  """The report in a folder, if an evaluation of this model was finished there.

  Args:
    folder: a `pathlib.Path`.
    model: the model's path, for the message.
    fingerprint: the model's.
    html: whether to write the page too, if it is missing.

  Returns:
    The content of report.json, or None if there is none.

  Raises:
    UserError: if it is on another model, or damaged.
  """
  file = folder / "report.json"
  if not file.exists():
    return None
  try:
    found = json.loads(file.read_text(encoding="utf-8"))
    owner = found["config"].get("fingerprint")
  except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
    raise errors.UserError(
      f"{file} is damaged, or not a report: delete it, then run the same command to measure again"
    ) from None
  if owner != fingerprint:
    raise errors.UserError(
      f"{folder} holds a report on another model than the one now in {model}: give another "
      "--output_dir"
    )
  if html and not (folder / PAGE).exists():
    files.write(folder / PAGE, page(parts(found, folder), folder))
    print(f"{folder} is finished: writing its page from the stored report")
  else:
    print(f"{folder} is finished: nothing to do")
  return found


def clear(folder):
  """Removes what is left of a report without report.json, and may not be written again."""
  if (folder / "report.md").exists():
    for name in ("images.npz", PAGE, "figures/examples.png", "figures/latent_map.png"):
      (folder / name).unlink(missing_ok=True)


def write(folder, report, html=False):
  """Writes a report's files; report.json comes last, as the sign that the report is complete.

  Args:
    folder: a `pathlib.Path`.
    report: the dict that report.json holds.
    html: whether to write the page too.
  """
  for part in parts(report):
    if isinstance(part, Picture) and part.draw:
      (folder / part.file).parent.mkdir(exist_ok=True)
      part.draw(folder / part.file)
  content = parts(report, folder)
  files.write(folder / "report.md", markdown(content))
  if html:
    files.write(folder / PAGE, page(content, folder))
  files.write(folder / "report.json", json.dumps(report, indent=2, allow_nan=False) + "\n")


def parts(report, folder=None):
  """The parts of a report, in order.

  Args:
    report: the dict that report.json holds.
    folder: a `pathlib.Path`: pictures that are not there are left out; None keeps all.

  Returns:
    A list of the classes of `document`.
  """
  config, measured = report["config"], measurements.in_report(report)
  title = f"Evaluation on {config['dataset']}"
  title = f"{title}, {config['split']}" if "split" in config else title
  intro = "".join(one.intro(part) for one, part in measured) or _INTRO
  content: list = [Heading(title, 1), Text(intro)]
  first = sorted(measured, key=lambda pair: pair[0].glance_place or pair[0].place)
  if figures := [figure for one, part in first for figure in one.glance(part, report)]:
    content.append(Glance(figures))
  if notes := config.get("model", {}).get("notes"):
    content += [Heading("The model"), Items(notes)]
  for one, part in measured:
    content += one.render(part, report)
  versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
  there = lambda part: not (folder and isinstance(part, Picture)) or (folder / part.file).exists()  # noqa: E731
  return [*filter(there, content), Text(f"Made with {versions}.")]

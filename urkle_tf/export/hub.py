"""Writes model cards with measured figures, and uploads exports to the Hugging Face hub."""

import json
import os
import pathlib

from urkle_tf import errors, export
from urkle_tf.export import card
from urkle_tf.networks import presets


def model_card(folder, report=None):
  """Writes the card of an export again, with the results of an evaluation.

  Args:
    folder: of an encoder, a classifier or a regressor of this package.
    report: the folder of the evaluation, or its report.json; None for a card without figures.

  Returns:
    The card's path, `folder/README.md`.

  Raises:
    UserError: if there is no such export or report, or the report is of another model.

  ```python
  card = urkle_tf.model_card("RUN/classifier", report="REPORT")  # RUN/classifier/README.md
  ```
  """
  folder, metadata = pathlib.Path(os.path.expanduser(folder)), _metadata(folder)
  found = None if report is None else read_report(report, metadata)
  card.write(folder, metadata, found)
  return folder / card.NAME


def push_to_hub(folder, repo_id, report=None, private=True, **options):
  """Uploads an export with its card to the Hugging Face hub.

  Args:
    folder: of an encoder, a classifier or a regressor of this package.
    repo_id: `"owner/name"`; the repository is created if it does not exist.
    report: as in `model_card`; None leaves the card as it is.
    private: whether a new repository is private.
    **options: arguments of `huggingface_hub.HfApi.upload_folder`: token, commit_message, revision.

  Returns:
    The result of the upload, a `huggingface_hub.CommitInfo`.

  Raises:
    UserError: if huggingface_hub is not installed, or as in `model_card`.

  ```python
  urkle_tf.push_to_hub("RUN/classifier", "owner/name", report="REPORT")
  ```
  """
  try:
    import huggingface_hub  # optional
  except ImportError as error:
    raise errors.UserError(
      "push_to_hub needs huggingface_hub, which is not installed: pip install huggingface_hub"
    ) from error
  _metadata(folder)
  if report is not None:
    model_card(folder, report)
  token = {"token": options["token"]} if "token" in options else {}
  hub = huggingface_hub.HfApi(**token)
  hub.create_repo(repo_id, private=private, exist_ok=True)
  here = os.path.expanduser(folder)
  return hub.upload_folder(repo_id=repo_id, folder_path=here, **options)


def _metadata(folder):
  if presets.is_named(folder):
    raise errors.UserError(
      f"{folder!r} is a preset: export what load_classifier returns for it, and give that folder"
    )
  return export.read_metadata(folder)


def read_report(report, *models):
  """Reads the report of an evaluation.

  Args:
    report: the folder of the evaluation, or its report.json.
    *models: metadata of exports; the report must be about one of them.

  Returns:
    What report.json holds, without paths.

  Raises:
    UserError: if there is no such report, or it is of another model.
  """
  file = pathlib.Path(os.path.expanduser(report))
  file = file / "report.json" if file.is_dir() else file
  try:
    found = json.loads(file.read_text(encoding="utf-8"))
    config = dict(found["config"])
  except OSError as error:
    raise errors.UserError(
      f"no report {str(file)!r}: give the --output_dir of an evaluation"
    ) from error
  except (ValueError, KeyError, TypeError) as error:
    raise errors.UserError(
      f"{str(file)!r} is not a report of evaluate ({error}): give the --output_dir of an evaluation"
    ) from error
  measured = config.get("fingerprint")
  here = [str(metadata.get("fingerprint")) for metadata in models]
  if measured not in here:
    raise errors.UserError(
      f"{str(file)!r} is about another model (weights {measured}, here {' or '.join(here)}): "
      "evaluate this model"
    )
  config["dataset"] = export.settings_without_paths(config)["dataset"]
  return {**found, "config": config}

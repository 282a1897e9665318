"""Model cards with what was measured, and exports on the Hugging Face hub."""

import json
import pathlib

from urkle_tf import card, errors, export


def model_card(folder, report=None):
  """Writes the card of an export again, with what an evaluation of it found.

  Args:
    folder: of an encoder, a classifier or a regressor of this package.
    report: the folder of the evaluation, or its report.json; None for a card without figures.

  Returns:
    The card's path, `folder/README.md`.

  Raises:
    UserError: if there is no such export or report, or the report is of another model.
  """
  metadata = export.read_metadata(folder)
  found = None if report is None else _read_report(report, metadata)
  card.write(pathlib.Path(folder), metadata, found)
  return pathlib.Path(folder) / card.NAME


def push_to_hub(folder, repo_id, report=None, private=True, **options):
  """Uploads an export with its card to the Hugging Face hub.

  Args:
    folder: of an encoder, a classifier or a regressor of this package.
    repo_id: `"owner/name"`; it is made if it is not there.
    report: as in `model_card`; None leaves the card as it is.
    private: whether a repository that is made is private.
    **options: of `huggingface_hub.HfApi.upload_folder`: token, commit_message, revision.

  Returns:
    What the upload returns.

  Raises:
    UserError: if huggingface_hub is not installed, or as `model_card`.
  """
  try:
    import huggingface_hub  # optional
  except ImportError as error:
    raise errors.UserError(
      "push_to_hub needs huggingface_hub, which is not installed: pip install huggingface_hub"
    ) from error
  export.read_metadata(folder)
  if report is not None:
    model_card(folder, report)
  token = {"token": options["token"]} if "token" in options else {}
  hub = huggingface_hub.HfApi(**token)
  hub.create_repo(repo_id, private=private, exist_ok=True)
  return hub.upload_folder(repo_id=repo_id, folder_path=str(folder), **options)


def _read_report(report, metadata):
  file = pathlib.Path(report)
  file = file / "report.json" if file.is_dir() else file
  try:
    found = json.loads(file.read_text(encoding="utf-8"))
    config = found["config"]
  except OSError as error:
    raise errors.UserError(f"no report {str(file)!r}: give the folder of evaluate") from error
  except (ValueError, KeyError, TypeError) as error:
    raise errors.UserError(f"{str(file)!r} is no report of evaluate: {error}") from error
  measured = config.get("fingerprint")
  if measured != metadata.get("fingerprint"):
    raise errors.UserError(
      f"{str(file)!r} is about another model (weights {measured}, here "
      f"{metadata.get('fingerprint')}): evaluate this one"
    )
  config["dataset"] = export.settings_without_paths(config)["dataset"]
  return found

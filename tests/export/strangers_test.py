"""What a stranger's model cannot do: run code, break a command, carry something away."""

import ast
import getpass
import io
import json
import pathlib
import socket
import zipfile

import hypothesis
import keras
import numpy as np
import pytest
import tensorflow as tf
from cases import refused, refuses
from commands import ROOT
from hypothesis import strategies as st
from small_models import saved_model, small_encoder

from urkle_tf import errors, export, networks
from urkle_tf.networks.classifier import Classifier
from urkle_tf.networks.saved import foreign_models, trust
from urkle_tf.training import jobs, robustify

SHAPE = (4, 4, 1)
SECRET = "token-5f2c81d0"  # no secret: what stands for one


# No complaint repeats all that a file holds.
SHORT = r"^.{1,899}$"


# --- Code in .keras files ---


def with_code(file, marker):
  """Writes a model whose Lambda layer makes a file when it runs."""
  inputs = keras.Input(SHAPE)
  path = str(marker)
  # Only lambdas are written with their code; named functions by their name.
  code = lambda x: (open(path, "w").close(), x[:, 0, :, 0])[1]  # noqa: E731
  model = keras.Model(inputs, keras.layers.Lambda(code, output_shape=(4,))(inputs))
  model.save(file)
  marker.unlink(missing_ok=True)
  return file


def test_code_in_a_keras_file_runs_only_where_it_is_trusted(tmp_path):
  marker = tmp_path / "ran"
  file = with_code(tmp_path / "code.keras", marker)
  with refused("holds Python code", "--trust", match=SHORT):
    foreign_models.load(file)
  assert not marker.exists()
  with trust.granted():
    loaded = foreign_models.load(file)
    assert loaded.function(np.zeros((2, *SHAPE), np.float32)).shape == (2, 4)
  assert marker.exists()
  assert not trust.is_granted()
  refuses("holds Python code", foreign_models.load, file)


def test_code_in_a_network_to_train_runs_only_where_it_is_trusted(tmp_path):
  """Of --encoder=FILE.keras, --init_from and a resumed `robustify`, also with --trust."""
  marker = tmp_path / "ran"
  file = with_code(tmp_path / "network.keras", marker)
  for read, given in (
    (networks.backbone, (str(file), SHAPE)),
    (jobs._initialise, (None, str(tmp_path), None)),
    (robustify._check_same, (None, file)),
  ):
    with refused("holds Python code", "--trust", match=SHORT):
      read(*given)
  assert not marker.exists()
  with trust.granted():
    assert networks.backbone(str(file), SHAPE).output_shape == (None, 4)
    model = foreign_models.read_keras(file)
    robustify._check_same(model, file)


def test_trust_ends_with_its_block():
  with trust.granted():
    with trust.granted():
      pass
    assert trust.is_granted()
  assert not trust.is_granted()
  with pytest.raises(KeyError), trust.granted():
    raise KeyError
  assert not trust.is_granted()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """An exported classifier, from a place and with settings that are nobody else's business."""
  place = tmp_path_factory.mktemp("home-of-somebody")
  head = networks.mlp(6, [10], "head")
  model = Classifier(small_encoder().network, head)
  settings = {name: str(place / name) for name in ("output_dir", "data_dir", "init_from")}
  settings |= {"encoder": f"{place}/backbone.keras", "dataset": f"folder:{place}/photos"}
  settings["pretext"] = f"distil(teacher={place}/teacher)"
  metadata = {"dataset": "folder", "norm": "linf", "epsilon": 0.1, "settings": settings}
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("URKLE_TEST_TOKEN", SECRET)
    patch.chdir(place)
    return export.export_classifier(model, place / "run" / "classifier", metadata)


def test_code_in_an_exported_folder_is_not_run(folder, tmp_path):
  marker = tmp_path / "ran"
  copy = tmp_path / "copy"
  copy.mkdir()
  (copy / "metadata.json").write_bytes((folder / "metadata.json").read_bytes())
  with_code(copy / "network.keras", marker)
  with refused("holds Python code", "--trust", match=SHORT):
    export.load_encoder(copy)
  assert not marker.exists()


# --- Operations in SavedModels ---


def test_a_saved_model_that_touches_files_is_not_even_loaded(tmp_path):
  victim = tmp_path / "victim"

  def serve(images):
    tf.io.write_file(str(victim), "gone")
    return {"logits": tf.reshape(images, [-1, 16])}

  saved_model(serve, tmp_path / "model", SHAPE)
  victim.unlink(missing_ok=True)
  with refused("reach outside the model (WriteFile)", "--trust", match=SHORT):
    foreign_models.load(tmp_path / "model")
  assert not victim.exists()
  with trust.granted():
    foreign_models.load(tmp_path / "model").function(tf.zeros([1, *SHAPE]))
  assert victim.exists()


@pytest.mark.parametrize(
  "name, unsafe",
  [
    *((name, True) for name in ("ReadFile", "WriteFile", "PyFunc", "EagerPyFunc", "RpcCall")),
    *((name, True) for name in ("TFRecordDatasetV2", "WholeFileReaderV2", "SaveDatasetV2")),
    *((name, False) for name in ("RestoreV2", "SaveV2", "ReadVariableOp", "Conv2D", "While")),
    *((name, False) for name in ("StatelessRandomNormalV2", "ShardedFilename", "SaveSlicesX")),
  ],
)
def test_operations_that_reach_outside(name, unsafe):
  assert trust._is_unsafe(name) is unsafe


def test_our_own_exports_reach_nowhere(folder):
  trust.check_graph(folder, foreign_models._operations(folder))


# --- metadata.json, and files that do not fit it ---


def copy_of(folder, to, **changes):
  to.mkdir(exist_ok=True)
  for name in ("network.keras", "head.keras"):
    (to / name).write_bytes((folder / name).read_bytes())
  metadata = json.loads((folder / "metadata.json").read_text()) | changes
  (to / "metadata.json").write_text(json.dumps(metadata))
  return to


@pytest.mark.parametrize(
  "changes, words",
  [
    ({"image_size": [8, 8]}, "image_size is [8, 8]"),
    ({"image_size": [8, -8, 1]}, "image_size"),
    ({"image_size": "8x8"}, "image_size"),
    ({"latent_dim": True}, "latent_dim is True"),
    ({"latent_dim": 1e9}, "latent_dim"),
    ({"stochastic": "no"}, "stochastic is 'no'"),
    ({"samples": 0}, "samples is 0"),
    ({"samples": 10**9}, "samples"),
    ({"class_names": ["a"] * 9}, "class_names"),
    ({"class_names": [["a"]] * 10}, "class_names"),
    ({"classes": None}, "classes is None"),
    ({"classes": "\n"}, r"classes is '\n'"),
    ({"epsilon": "8/255"}, "epsilon is '8/255'"),
    ({"epsilon": float("nan")}, "epsilon is nan"),
    ({"settings": ["a"]}, "settings"),
    ({"kind": ["classifier"]}, "kind"),
    ({"kind": "bomb"}, "kind is 'bomb'"),
    ({"dataset": {"a": 1}}, "dataset"),
    ({"fingerprint": None}, "fingerprint is None"),
    ({"format_version": "x" * 10**5}, "export format 'xxx"),
    ({"image_size": [9, 9, 1]}, "does not fit its metadata.json"),
    ({"latent_dim": 7}, "does not fit its metadata.json"),
    ({"classes": 11, "class_names": None}, "does not fit its metadata.json"),
  ],
)
def test_metadata_that_cannot_be_right(folder, tmp_path, changes, words):
  with refused(words, match=SHORT):
    export.load_classifier(copy_of(folder, tmp_path / "copy", **changes))


def test_metadata_that_is_a_bomb(folder, tmp_path):
  copy = copy_of(folder, tmp_path / "copy")
  (copy / "metadata.json").write_text("[" * 10**6)
  with refused("is damaged", match=SHORT):
    export.read_metadata(copy)
  with open(copy / "metadata.json", "wb") as file:
    file.truncate(2**25)
  refuses("larger than 16 MiB", export.read_metadata, copy)


def test_networks_of_another_kind(folder, tmp_path):
  copy = copy_of(folder, tmp_path / "copy")
  inputs = keras.Input((8, 8, 1))
  keras.Model(inputs, keras.layers.Flatten()(inputs)).save(copy / "network.keras")
  with refused("does not fit its metadata", match=SHORT):
    export.load_encoder(copy)
  keras.Sequential([keras.layers.Dense(3)]).save(copy / "network.keras")  # not even built
  with refused(match=SHORT):
    export.load_encoder(copy)


JSON = st.recursive(
  st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
  lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
  max_leaves=8,
)


@hypothesis.settings(deadline=None, max_examples=200)
@hypothesis.given(st.data())
def test_any_json_as_metadata(folder, tmp_path_factory, data):
  """It is read, or refused in one line."""
  place = tmp_path_factory.mktemp("fuzz")
  good = json.loads((folder / "metadata.json").read_text())
  if data.draw(st.booleans()):
    found = data.draw(JSON)
  else:
    found = good | {data.draw(st.sampled_from(sorted(good))): data.draw(JSON)}
  (place / "metadata.json").write_text(json.dumps(found))
  try:
    metadata = export.read_metadata(place, "classifier")
  except errors.UserError as error:
    assert "\n" not in str(error)  # noqa: PT017
    return
  assert all(isinstance(size, int) and size > 0 for size in metadata["image_size"])
  assert isinstance(metadata["stochastic"], bool)


# --- What goes out ---


def contents(folder):
  """(name, bytes) of all files in a folder, those inside of archives too."""
  for file in sorted(p for p in folder.rglob("*") if p.is_file()):
    content = file.read_bytes()
    yield str(file.relative_to(folder)), content
    if zipfile.is_zipfile(io.BytesIO(content)):
      with zipfile.ZipFile(io.BytesIO(content)) as archive:
        for name in archive.namelist():
          yield f"{file.name}:{name}", archive.read(name)


def test_an_export_does_not_reveal_where_it_was_made(folder):
  private = {SECRET, str(ROOT), "home-of-somebody", str(folder.parent), str(pathlib.Path.home())}
  private |= {socket.gethostname(), socket.getfqdn(), getpass.getuser()}
  # Names so short or common that they say nothing ("root", "localhost") occur by chance.
  private = {word for word in private if len(word) > 5} - {"localhost", "ubuntu", "runner"}
  found = list(contents(folder))
  assert any(name == "saved_model.pb" for name, _ in found)
  assert any(name.startswith("network.keras:") for name, _ in found)
  told = [(name, word) for name, content in found for word in private if word.encode() in content]
  assert told == []


# --- What our own code may not do ---

CODE = ("urkle_tf", "launch", "experiments", "tools", "examples")
SOURCES = [path for part in CODE for path in (ROOT / part).rglob("*.py")]
UNPICKLERS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}


def faults(source):
  """Calls and imports that would run what a file says."""
  found = []
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.Import | ast.ImportFrom):
      names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
      found += [name for name in names if name.split(".")[0] in UNPICKLERS]
    if not isinstance(node, ast.Call):
      continue
    called = ast.unparse(node.func)
    options = {word.arg: ast.unparse(word.value) for word in node.keywords}
    if called in ("np.load", "numpy.load") and options.get("allow_pickle") != "False":
      found.append(f"{called} without allow_pickle=False")
    if called.endswith("load_model") and options.get("safe_mode") == "False":
      found.append("load_model with safe_mode=False")
    if called == "torch.load" and options.get("weights_only") != "True":
      found.append("torch.load without weights_only=True")
    if called in ("eval", "exec", "yaml.load", "keras.config.enable_unsafe"):
      found.append(called)
    if called.endswith("enable_unsafe_deserialization"):
      found.append(called)
  return found


def test_no_code_of_ours_runs_what_a_file_says():
  found = {str(path.relative_to(ROOT)): faults(path.read_text("utf-8")) for path in SOURCES}
  # What it has just written itself, from the model in memory.
  assert found.pop("urkle_tf/export/keras_files.py") == ["load_model with safe_mode=False"]
  assert {name: what for name, what in found.items() if what} == {}

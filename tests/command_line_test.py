"""The command lines: each mistake ends in one clear line, and loses nothing.

Mistakes in flags need no TensorFlow: each runs in a separate process.  All others run
one after the other in one process, through the commands' own `main`, because TensorFlow takes
seconds to start.
"""

import dataclasses
import json
import re
import sys

import commands
import pytest
from cases import refuses
from small_models import photographs

import urkle_tf
from urkle_tf import settings
from urkle_tf.data import sources

SMALL = "--encoder=convnet(width=4,layers=2) --epochs=1 --attack_steps=1 --epsilon=0.1"
TINY = f"{SMALL} --split=train[:32] --batch_size=16"
MEASURE = (
  "--classifier={tmp}/head/classifier --split=test[:4] --attacks=fgsm --epsilon=0.1 --eot=1 "
  "--samples=2 --nochecks"
)
SHORT = {  # of arguments
  "tiny": TINY,
  "run": TINY + " --output_dir={tmp}/run",
  "new": TINY + " --output_dir={tmp}/new",
  "folder": SMALL + " --batch_size=4 --output_dir={tmp}/new --image_size=16",
  "tuned": "--encoder={tmp}/run/encoder --split=train[:32] --epochs=1 --weight_decay=0 "
  "--output_dir={tmp}/head",
  "measure": MEASURE,
  "measured": MEASURE + " --output_dir={tmp}/report",
}

# Exit code, command: name | words on the line | arguments; in this order, in one process.
# A code of 0 is a command without a mistake: what came before it in its folder does no harm.
CASES = """
2 train: no folder for the run | give --output_dir=FOLDER | {tiny}
2 train: data not prepared | is not prepared in '{tmp}/cifar10 | --dataset=cifar10 \
  --data_dir={tmp} --output_dir={tmp}/new
2 train: corrupt image | corrupt/cat/torn.png | {folder} --dataset=folder:{tmp}/corrupt
2 train: corrupt image found while training | corrupt/cat/torn.png | {folder} \
  --dataset=folder:{tmp}/corrupt --split=all --batch_size=13
2 train: empty class folder | empty/dog | {folder} --dataset=folder:{tmp}/empty
2 train: no labels for the supervised pretext | has no labels: put | {folder} \
  --dataset=folder:{tmp}/loose --split=all --batch_size=2 --pretext=supervised --robustness=none
2 train: unknown robustness | urkle | {run} --robustness=urkel
2 train: file in the way | {tmp}/file/run | {tiny} --output_dir={tmp}/file/run
2 train: two ends | both set the end | {tiny} --minutes=1 --output_dir={tmp}/full
1 train: full disk, by the clock | No space left on device | {tiny} --epochs= --minutes=1 \
  --output_dir={tmp}/full
0 train: training |  | {run}
2 train: folder of other settings | holds a run with --epsilon=0.1 | {run} --epsilon=0.2
0 train: training again |  | {run}
2 finetune: no encoder | give --encoder=FOLDER | --output_dir={tmp}/head
2 finetune: images without labels | label | {tuned} --dataset=folder:{tmp}/loose --split=all
0 finetune: fine-tuning |  | {tuned}
2 finetune: head of other settings | holds a run with --seed=0 | {tuned} --seed=1
2 evaluate: no classifier | give --classifier=FOLDER | --output_dir={tmp}/report
2 evaluate: encoder in place of a classifier | classifier | {measured} \
  --classifier={tmp}/run/encoder
2 evaluate: no report folder | give --output_dir=FOLDER | {measure}
0 evaluate: evaluation |  | {measured}
2 evaluate: report of other settings | holds a run with --seed=0 | {measured} --seed=1
2 embed: no encoder to embed with | give --encoder=FOLDER | --output_dir={tmp}/embedded
2 embed: no folder for embeddings | give --output_dir=FOLDER | --encoder={tmp}/run/encoder
2 embed: embeddings among a run's files | give another --output_dir | \
  --encoder={tmp}/run/encoder --output_dir={tmp}/run
2 embed: corrupt image to embed | corrupt/cat/torn.png | --encoder={tmp}/run/encoder \
  --dataset=folder:{tmp}/corrupt --image_size=8 --output_dir={tmp}/embedded
0 embed: embedding |  | --encoder={tmp}/run/encoder --examples=9 --output_dir={tmp}/embedded
2 embed: embeddings of other settings | holds a run with --examples=9 | \
  --encoder={tmp}/run/encoder --examples=8 --output_dir={tmp}/embedded
""".strip().splitlines()


def _read(case):
  """(exit code, command, name, words, arguments) of a line."""
  ending, name, words, arguments = re.fullmatch(r"(.+?): (.+?) \| (.*?) ?\| (.*)", case).groups()
  code, command = ending.split()
  return int(code), command, name, words, arguments


def _process(*arguments, code=0, **options):
  """As in a user's shell: the commands are quiet by themselves."""
  quiet = {"TF_CPP_MIN_LOG_LEVEL": None, "CUDA_VISIBLE_DEVICES": ""}
  return commands.process(sys.executable, *arguments, code=code, environment=quiet, **options)


def _run_cases(tmp):
  for folder in ("corrupt/cat", "corrupt/dog", "empty/cat"):
    photographs(tmp / folder, 6, 16)
  photographs(tmp / "loose", 2, 8, channels=1)  # as digits
  (tmp / "empty/dog").mkdir()
  torn = tmp / "corrupt/cat/torn.png"
  torn.write_bytes((tmp / "corrupt/cat/0.png").read_bytes()[:-200])  # the header is whole
  (tmp / "file").write_text("a file")
  (tmp / "full").mkdir()
  (tmp / "full/flags.side").symlink_to("/dev/full")
  given = []
  for _, command, name, _, arguments in map(_read, CASES):
    words = arguments.format(**SHORT, tmp="{tmp}").format(tmp=tmp).split()
    given.append([command, words, 0 if "while training" in name else None])
  done = _process(commands.__file__, input=json.dumps(given))
  results = json.loads(done.stdout.splitlines()[-1])
  return {case: tuple(r) for case, r in zip(CASES, results, strict=True)}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
  """{case: (exit code, standard error)}, and the folder."""
  tmp = tmp_path_factory.mktemp("commands")
  return _run_cases(tmp), tmp


def _is_one_line(code, stderr):
  assert code in (1, 2), stderr
  assert re.fullmatch(r"error: [^\n]+\n", stderr), stderr


@pytest.mark.timeout(240)
@pytest.mark.parametrize("case", CASES, ids=lambda case: _read(case)[2])
def test_a_command_ends_as_it_should(outcomes, case):
  expected, _, _, words, _ = _read(case)
  results, tmp = outcomes
  code, stderr = results[case]
  assert code == expected, stderr
  assert "Traceback" not in stderr
  if code:
    # A training that had begun also showed its progress.
    _is_one_line(code, re.sub(r"^epoch .*\n", "", stderr, flags=re.MULTILINE))
    assert words.format(tmp=tmp) in stderr


def test_what_was_refused_left_nothing_behind(outcomes):
  _, tmp = outcomes
  assert not (tmp / "new/encoder").exists()
  assert not list((tmp / "new").glob("checkpoints/*"))
  flags = (tmp / "run/flags.cfg").read_text().splitlines()
  assert "--epsilon=0.1" in flags
  assert "--encoder=convnet(width=4,layers=2)" in flags
  assert "--seed=0" in (tmp / "head/flags.cfg").read_text().splitlines()
  assert json.loads((tmp / "report/report.json").read_text())["config"]["seed"] == 0


# Processes of their own.


@pytest.mark.parametrize(
  "arguments, words",
  [
    (["evaluate", "--clasifier=x"], "unknown flag 'clasifier'; did you mean 'classifier'?"),
    (["train", "digits"], "unexpected argument 'digits'"),
    (["train", "--flagfile=nowhere.cfg"], "Unable to open flagfile"),
    (["train", "--epochs=many"], "--epochs=many: 'many' is not a whole number"),
    (["train", "--epsilon=8/0"], "'8/0' is not a number"),
    (["finetune", "--labels=some"], "'some' is not a number"),
    (["evaluate", "--epsilons=8/255,x"], "'x' is not a number"),
    (["evaluate", "--output_dir="], "give --output_dir=FOLDER"),
  ],
)
def test_wrong_flags(arguments, words):
  done = _process("-m", f"urkle_tf.{arguments[0]}", *arguments[1:], code=2)
  _is_one_line(done.returncode, done.stderr)
  assert words in done.stderr


@pytest.mark.parametrize(
  "text, words",
  [
    ("# a comment of its own\n--dataset=digits  # bundled\n", "dataset"),
    ("--epochs=3 # few\n", "epochs"),
    ("\ufeff# a comment\n--seed=1\n", "give --output_dir=FOLDER"),  # a byte order mark
    ("\ufeff--seed=1\n", "give --output_dir=FOLDER"),
  ],
)
def test_comments_and_a_byte_order_mark_in_a_flagfile(tmp_path, text, words):
  (tmp_path / "flags.cfg").write_text(text, encoding="utf-8")
  done = _process("-m", "urkle_tf.train", f"--flagfile={tmp_path}/flags.cfg", code=2)
  _is_one_line(done.returncode, done.stderr)
  assert words in done.stderr


def test_a_folder_may_have_a_name_that_looks_like_a_comment():
  done = _process("-m", "urkle_tf.finetune", "--output_dir=runs/photos #1", code=2)
  assert "give --encoder=FOLDER" in done.stderr


@pytest.mark.parametrize(
  "call",
  [
    lambda path: urkle_tf.represent(path),
    lambda path: urkle_tf.assess(f"{path}.keras"),
    lambda path: sources.load(f"folder:{path}"),
    lambda path: sources.load("mnist", data_dir=path),
  ],
)
def test_a_path_that_begins_with_a_tilde_and_no_user(call):
  refuses("'~no-such-user/x", call, "~no-such-user/x")


def test_an_empty_path_is_not_the_current_folder():
  refuses("write folder:PATH", sources.load, "folder:")


def test_version():
  done = _process("-m", "urkle_tf.train", "--version")
  assert (done.stdout, done.stderr) == (f"urkle_tf {urkle_tf.__version__}\n", "")


@pytest.mark.parametrize("command", settings.COMMANDS)
@pytest.mark.parametrize("flag", ["--help", "--helpfull"])
def test_help(command, flag):
  """That of all flags has all settings; those that a text mentions are flags there."""
  done = _process("-m", f"urkle_tf.{command}", flag)
  assert done.stderr == ""
  assert f"python -m urkle_tf.{command}" in done.stdout
  if flag == "--helpfull":
    names = {field.name for field in dataclasses.fields(settings.COMMANDS[command])}
    assert names <= set(re.findall(r"--(?:\[no\])?(\w+)", done.stdout))
    assert "`" not in done.stdout

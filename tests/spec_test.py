"""Specs: what they hold comes out as it went in, and nothing is evaluated."""

import math
import pathlib
import re
import sys

import hypothesis
import pytest
from cases import refused, refuses
from hypothesis import strategies as st

from urkle_tf import errors, pretexts, robustness, spec
from urkle_tf.data import augment, sources
from urkle_tf.training import optimizers

# A loaded machine may take long over one example.
UNHURRIED = hypothesis.settings(deadline=None)
NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,8}", fullmatch=True)
INTEGERS = st.integers(-(10**12), 10**12)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
WORDS = NAMES.filter(lambda word: word.lower() not in ("true", "false", "none"))
# Whatever stands between quotes is a string: parentheses, commas and numbers too.
STRINGS = st.text(st.characters(exclude_characters="\"'", exclude_categories=["Cs"]), max_size=12)


@UNHURRIED
@hypothesis.given(
  name=NAMES,
  options=st.dictionaries(NAMES, st.one_of(INTEGERS, FLOATS, st.booleans(), st.none())),
  space=st.sampled_from(["", " "]),
)
def test_numbers_and_constants_come_back(name, options, space):
  body = f",{space}".join(f"{key}{space}={space}{value!r}" for key, value in options.items())
  found, values = spec.parse(f"{space}{name}({body}){space}")
  assert found == name
  assert values == options
  assert [type(value) for value in values.values()] == [type(value) for value in options.values()]


@UNHURRIED
@hypothesis.given(word=WORDS, string=STRINGS, quote=st.sampled_from("\"'"))
def test_words_and_quoted_strings_come_back(word, string, quote):
  _, options = spec.parse(f"acl(form={word}, text={quote}{string}{quote}, last=1)")
  assert options == {"form": word, "text": string, "last": 1}


@UNHURRIED
@hypothesis.given(above=st.integers(-1000, 1000), below=st.integers(1, 1000))
def test_fractions(above, below):
  assert spec.number(f"{above}/{below}") == above / below
  assert spec.parse(f"pgd(epsilon={above}/{below})")[1]["epsilon"] == above / below


@pytest.mark.parametrize(
  "text, value",
  [("8/255", 8 / 255), ("3", 3), ("-2", -2), (".5", 0.5), ("1.", 1.0), ("1e-3", 0.001), ("+4", 4)],
)
def test_number(text, value):
  assert spec.number(text) == value
  assert type(spec.number(text)) is type(value)


NOT_NUMBERS = ["", "x", "8/0", "1/2/3", "--1", "0x10", "1_000", "inf", "nan"]
TOO_LARGE = ["1e999", "-1e999", "1/1e-320", "1e999/1e999"]


@pytest.mark.parametrize("text", [*NOT_NUMBERS, *TOO_LARGE])
def test_what_is_no_number(text):
  words = "is not a finite number" if text in TOO_LARGE else "is not a number"
  with pytest.raises(ValueError, match=words):
    spec.number(text)


@pytest.mark.parametrize("text", ["none", "none()", " none ( ) "])
def test_no_options(text):
  assert spec.parse(text) == ("none", {})


@pytest.mark.parametrize(
  "text",
  [
    *("", None, "urkle(", "urkle)", "urkle(0.1)", "urkle(beta)", "urkle(beta=)", "1urkle"),
    *("urkle(beta=0.1,)", "urkle(beta=0.1 positives=true)", "urkle(beta=[1, 2])"),
    *("urkle(beta=(1))", "urkle(beta='0.1)", "urkle(beta=0.1, beta=0.2)", "urkle(beta=0.1) none"),
  ],
)
def test_unreadable_specs_end_in_one_line(text):
  with refused(match="^cannot read|^option 'beta' is given twice"):
    spec.parse(text)


@pytest.mark.parametrize("call", ["open('{}', 'w')", "__import__('pathlib').Path('{}').touch()"])
def test_nothing_is_evaluated(tmp_path, call):
  witness = tmp_path / "evaluated"
  text = f"urkle(beta={call.format(witness)})"
  refuses("cannot read", spec.build, "robustness", text, robustness.Robustness)
  assert not pathlib.Path(witness).exists()
  # Without parentheses it is a word, and stays one.
  assert spec.parse("x(y=os.getcwd)")[1] == {"y": "os.getcwd"}


def test_build_makes_the_plug_in_of_that_name():
  scheme = spec.build("robustness", "urkle(beta=1/4, positives=false)", robustness.Robustness)
  assert type(scheme) is robustness.Urkle
  assert (scheme.beta, scheme.positives) == (0.25, False)
  assert type(spec.build("robustness", "none", robustness.Robustness)) is robustness.Plain
  pretext = spec.build("pretexts", "simclr(denominator=all)", pretexts.Pretext)
  assert pretext.denominator == "all"


@pytest.fixture
def module(tmp_path, monkeypatch):
  """A function of some classes' names: a module "baseline" with them, beside our schemes."""
  monkeypatch.setattr(robustness, "__path__", [*robustness.__path__, str(tmp_path)])

  def write(*classes):
    lines = [f"class {name}(robustness.Plain):\n  pass\n" for name in classes]
    lines = ["from urkle_tf import robustness\n", *lines]
    (tmp_path / "baseline.py").write_text("\n".join(lines))

  yield write
  sys.modules.pop("urkle_tf.robustness.baseline", None)


def test_a_name_may_begin_with_base(module):
  module("Baseline")
  assert "baseline" in spec.names("robustness")
  found = spec.build("robustness", "baseline", robustness.Robustness)
  assert type(found).__name__ == "Baseline"


@pytest.mark.parametrize("classes", [(), ("First", "Second")])
def test_a_module_holds_one_plug_in(module, classes):
  module(*classes)
  words = f"baseline.py must hold one subclass of Robustness, but holds {', '.join(classes)}"
  refuses(words, spec.build, "robustness", "baseline", robustness.Robustness)


def test_call_passes_options_and_what_is_given():
  def power(base, exponent, offset=0):
    return base**exponent + offset

  assert spec.call({"power": power}, "power(exponent=3, offset=1)", "function", base=2) == 9
  for text, words in (
    ("powr", "unknown function 'powr'; did you mean 'power'?"),
    ("power", "power needs the option 'exponent'"),
    ("power(base=3, exponent=1)", "unknown option of power 'base'"),
  ):
    refuses(words, spec.call, {"power": power}, text, "function", base=2)


def test_split():
  parts = ["fgsm", "pgd(steps=2, restarts=5)", "square"]
  assert spec.split("fgsm, pgd(steps=2, restarts=5),,square") == parts
  text = 'mnist, mnist:any_of(classes="a,b"),aff(beta=6, x=1),,digits'
  assert spec.split(text) == ["mnist", 'mnist:any_of(classes="a,b")', "aff(beta=6, x=1)", "digits"]
  assert spec.split("a('),'=1),b") == ["a('),'=1)", "b"]
  assert spec.split(" ") == []


# What is built of a spec | what the error says, parts with & in between.
MISTAKES = """
pretexts: byol(momentum=1.0) | byol: momentum must be in [0, 1), got 1.0
pretexts: simsiam(predictor=0) | simsiam: predictor must be a whole number of
pretexts: barlow_twins(redundancy=-1) | barlow_twins: redundancy must be at least 0
pretexts: vicreg(invariance=0, variance=0, covariance=0) | above 0
pretexts: vae(beta=-1) | beta must be at least 0
pretexts: vae(likelihood=poisson) | unknown likelihood 'poisson'
pretexts: simclr(temperature=0.0) | simclr: temperature must be above 0, got 0.0
pretexts: simclr(denominator=al) | unknown denominator 'al'; did you mean 'all'?
pretexts: simclr(consistency=-1) | consistency must be at least 0
pretexts: simclr(projector=-1) | simclr: projector must be a whole number of at least 0
pretexts: simclr(views=true) | simclr: views must be a whole number of at least 2, got True
pretexts: simclr(views=1) | simclr: views must be a whole number of at least 2
pretexts: supervised(width=1.5) | supervised: width must be a whole number of at least 1
pretexts: supervised(task=ranking) | unknown task 'ranking'
pretexts: supervised(outputs=1) | outputs must be a whole number of at least 2
robustness: urkel | unknown robustness 'urkel'; did you mean 'urkle'?
robustness: base | unknown robustness 'base'
robustness: urkle(bta=1) | unknown option of urkle 'bta'; did you mean 'beta'?
robustness: urkle(self=1) | unknown option of urkle 'self'
robustness: urkle(beta=-0.1) | urkle: beta must be at least 0, got -0.1
robustness: urkle(attacked=0) | attacked must be a whole number of at least 1, got 0
robustness: trades(beta=-0.1) | beta must be at least 0
robustness: rocl(weight=-1) | rocl: weight must be at least 0, got -1
robustness: acl(form=a2b) | unknown form of acl 'a2b'
robustness: acl(anneal=0) | anneal must be a whole number of at least 1, got 0
robustness: acl(anneal=20, adversarial_weight=1.5) | must be in [0, 1], got 1.5
robustness: acl(adversarial_weight=0.5) | give anneal
robustness: acl(form=a2a, anneal=20, adversarial_weight=0.5) | form=ds
robustness: acl(ema=1.0) | acl: ema must be in [0, 1), got 1.0
recipes: simclear | 'simclear' & 'simclr'
recipes: simclr(strength=-1) | simclr: strength must be at least 0, got -1
recipes: simclr(min_scale=0) | simclr: min_scale must be in (0, 1], got 0
recipes: simclr(strength=much) | wrong type
recipes: affine(scale=1) | scale must be in [0, 1), got 1
recipes: simclr, crop(padding=-2) | crop: padding must be a whole number of at least 0, got -2
recipes: randaugment(magnitude=11) | magnitude must be in [0, 10], got 11
recipes: augmix(severity=30) | severity must be in [0.1, 10], got 30
recipes: augmix(width=0) | augmix: width must be a whole number of at least 1, got 0
recipes: augmix(base="crop(padding=-1)") | crop: padding must be a whole number
recipes: randaugment(operations=1.5) | operations must be a whole number & 1.5
labels: digits:partiy | unknown labelling 'partiy'; did you mean 'parity'
labels: digits:rotation(degrees=0) | degrees must be in (0, 180]
labels: digits:at_least(threshold=10) | on one side
labels: digits:any_of | any_of needs the option 'classes'
labels: digits:any_of(classes="11") | unknown class of 'digits' '11'
labels: digits:any_of(classes="0/1/2/3/4/5/6/7/8/9") | leave some out
labels: digits:rotation:parity | has no classes
optimizers: lars(momentum=1) | lars: momentum must be in [0, 1), got 1
optimizers: adamw(beta_2=x) | adamw: beta_2 must be in [0, 1), got x
optimizers: larz | unknown optimizer 'larz'; did you mean 'lars'?
"""


@pytest.mark.parametrize("case", MISTAKES.strip().splitlines())
def test_wrong_options_end_in_one_line(case):
  kind, text, words = re.fullmatch(r"(\w+): (.*) \| (.*)", case).groups()
  build = {
    "pretexts": lambda: spec.build("pretexts", text, pretexts.Pretext),
    "robustness": lambda: spec.build("robustness", text, robustness.Robustness),
    "recipes": lambda: augment.from_spec(text),
    "labels": lambda: sources.load(text.replace("/", "|"), "test"),
    "optimizers": lambda: optimizers.build(text, 1, 10),
  }
  refuses(words, build[kind])


@pytest.mark.parametrize(
  "kind, option",
  [
    (pretexts.BYOL, "momentum"),
    (pretexts.VAE, "beta"),
    (pretexts.VICReg, "variance"),
    (robustness.Trades, "beta"),
    (robustness.Urkle, "beta"),
  ],
)
def test_nan_is_no_option(kind, option):
  with pytest.raises(errors.UserError, match=f"{option} must be .*nan"):
    kind(**{option: math.nan})

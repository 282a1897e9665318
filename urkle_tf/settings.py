"""The settings of the four commands and their functions, each written once.

`Pretrain`, `Adapt`, `Assess` and `Represent` are the keyword arguments of the functions of these
names.  `Train`, `Finetune`, `Evaluate` and `Embed` add the settings that only the commands have;
they are never instantiated.  Flags, help, signatures, docstrings, the order of flags.cfg,
`__init__.pyi` and docs/settings.md are made from these classes, so a new setting is one new field.
After a change, run tools/write_settings.py.  Nothing here imports TensorFlow.
"""

import dataclasses
import functools
import inspect
import math
import numbers
import os
import textwrap
import types
import typing
from typing import Any

from urkle_tf import errors

REQUIRED = dataclasses.MISSING  # instead of a default; the flag's default is then None


@dataclasses.dataclass(frozen=True, eq=False)
class Setting:
  """What is known about a setting besides its name and type.

  Attributes:
    default: its default.
    text: the full text, for docstrings, docs and --helpfull.
    help: the shorter line of --help; if empty, `text`.
    free: whether it may differ when a run is resumed, because it does not change what is computed.
  """

  default: Any
  text: str
  help: str = ""
  free: bool = False


def setting(*of, **named) -> Any:
  """A field of a command: `Setting(*of, **named)`."""
  return _field(Setting(*of, **named))


def shared(name, default=..., **changes) -> Any:
  """A field that several commands share; `...` keeps its default in `_SHARED`."""
  known = _SHARED[name]
  default = known.default if default is ... else default
  return _field(dataclasses.replace(known, default=default, **changes))


def _field(given):
  return dataclasses.field(default=given.default, metadata={"setting": given})


_SHARED = {
  "dataset": Setting("digits", "TFDS name, digits (bundled) or folder:PATH"),
  "data_dir": Setting(
    None,
    "folder of prepared TFDS data; default: TFDS's own folder",
    "folder of prepared TFDS data",
    free=True,
  ),
  "download": Setting(False, "let TFDS download and prepare the data", free=True),
  "split": Setting("train", "split, with slices: train[:90%]"),
  "examples": Setting(
    None, "use only this many examples of the split, the first ones", "only this many images"
  ),
  "image_size": Setting(
    None,
    "side in pixels of the squares that images are resized to; default: the images' own size; if "
    "their sizes differ, 224, but 32 for a folder in which most are below 96",
    "resize images to squares of this side in pixels",
  ),
  "batch_size": Setting(256, "examples per step, over all replicas"),
  "epochs": Setting(None, "passes over the data"),
  "seed": Setting(0, "seed of all randomness"),
  "output_dir": Setting(
    None, "the run's folder; the same command on it resumes the run", free=True
  ),
  "norm": Setting("linf", "norm of the threat model: linf, l2 or l1"),
  "epsilon": Setting(8 / 255, "radius of the threat model in pixel units of [0, 1]: 8/255 or 0.03"),
  "attack_steps": Setting(None, "gradient steps of the attack"),
  "attack_step_size": Setting(
    None, "size of the attack's steps in pixel units; default: 2.5 epsilon / steps"
  ),
  "rise_minutes": Setting(None, "the same in minutes, with `minutes`, and fewer than those"),
  "encoder": Setting(None, "the folder of a trained encoder, or preset:NAME"),
  "log_every": Setting(50, "steps between two rows of metrics", free=True),
  "html": Setting(
    False,
    "write report.html too: the report as one file for a browser",
    "write report.html too",
    free=True,
  ),
  "trust": Setting(False, "run the code in model files; use it only if you trust their authors"),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Pretrain:
  """The settings of `urkle_tf.pretrain`."""

  output_dir: str = shared(
    "output_dir",
    REQUIRED,
    text="the run's folder; the same call or command on it resumes the run",
    help="the run's folder; the same command resumes it",
  )
  pretext: str = setting(
    "simclr",
    'spec of what is learned: `"simclr(temperature=0.5)"`, `"byol"`, `"simsiam"`, '
    '`"barlow_twins"`, `"vicreg"`, `"distil(teacher=PATH)"`, '
    '`"clusters(teacher=PATH)"`, `"keep(original=FILE)"`, `"vae"`, '
    '`"ae"`, `"supervised"`',
    "simclr byol simsiam barlow_twins vicreg distil clusters keep vae ae supervised",
  )
  robustness: str = setting(
    "urkle",
    'spec of the robustness scheme: `"none"`, `"urkle(k=8)"`, `"urkle(beta=0.1)"`, '
    '`"trades(beta=6)"`, `"adversarial_training"`, `"rocl"`, `"acl(form=ds)"`',
    "none urkle rocl acl trades adversarial_training",
  )
  dataset: str = shared("dataset")
  data_dir: str | None = shared("data_dir")
  download: bool = shared("download")
  split: str = shared("split")
  examples: int | None = shared("examples")
  image_size: int | None = shared("image_size")
  augment: str = setting(
    "simclr",
    'spec of the recipe that makes the views: `"simclr(strength=0.5)"`, `"augmix(base=simclr)"`, '
    '`"randaugment"`, `"affine"`, `"crop"` or `"none"`; or a list with one for each view, '
    'as in `"simclr, augmix(base=simclr)"`',
    "simclr(strength=1) augmix randaugment affine crop",
  )
  augment_on_device: bool = setting(False, "make the views on the accelerator, inside the step")
  encoder: str = shared(
    "encoder",
    "resnet18",
    text='spec of the backbone, `"resnet18(width=64)"` or `"convnet(width=48)"`; or a `.keras` '
    'file; or `"preset:NAME"`: the network of a preset, whose weights are the start, and which '
    "also sets loc, latent_dim and the bounds of sigma",
    help="resnet18(width=64) convnet FILE.keras preset:NAME",
  )
  loc: str | None = setting(
    None,
    'where mu lies: `"sphere"`, `"centred_sphere"`, `"pooled"`, `"dense"` or `"dense_sphere"` '
    "(`GaussianEncoder`); default: sphere; dense for vae, ae and supervised; pooled for keep",
    "where mu lies: sphere pooled dense ...",
  )
  latent_dim: int | None = setting(
    None, "d_z, the dimension of z; default: the width of the features"
  )
  batch_statistics: bool | None = setting(
    None,
    "whether the backbone runs in training mode, in which batch norms use the statistics of each "
    "batch and update their own; default: yes, except for a `.keras` file, whose statistics stay",
  )
  min_scale: float = setting(
    0.1, "smallest sigma: absolute on a sphere, otherwise in units of the spread of mu"
  )
  max_scale: float = setting(0.25, "largest sigma, in the same units")
  norm: str = shared(
    "norm", text="norm of the threat model: linf, or l2 or l1, which need `epsilon`"
  )
  epsilon: float = shared("epsilon", help="its radius in pixel units of [0, 1]: 8/255")
  attack_steps: int = shared(
    "attack_steps", 5, text="PGD steps of the inner maximisation", help="steps of the inner attack"
  )
  attack_step_size: float | None = shared("attack_step_size")
  attack: str | None = setting(
    None,
    'spec of the attack: `"pgd(start=0.5)"`, `"apgd"`, or `"rs_fgsm"`, `"fgsm"` or `"n_fgsm"`, '
    'which take one step; default: pgd. `"n_fgsm"` leaves the ball of epsilon, so pictures and '
    "the probe use PGD instead",
  )
  attack_schedule: str | None = setting(
    None,
    "how PGD's number of steps changes over the training: rising(first=1) or "
    "controlled(every=300); default: constant",
  )
  attack_precision: str | None = setting(
    None, "mixed_bfloat16 for the attack's passes only; default: that of precision"
  )
  optimizer: str = setting(
    "sgd",
    'spec of the optimizer: `"sgd(momentum=0.9)"`, `"lars(momentum=0.9, trust=0.001)"`, '
    '`"adamw"` or `"adamw(layer_decay=0.75)"`, where each block of the backbone has 0.75 of the '
    "learning rate of the block above it, and the heads have the full rate",
    "sgd(momentum=0.9) lars adamw(layer_decay=0.75)",
  )
  learning_rate: float | None = setting(
    None,
    "highest learning rate; cosine to 0, per step or by the clock; default: 0.1 for sgd, 0.001 for "
    "adamw, 1 for lars",
    "highest learning rate; cosine to 0",
  )
  warmup_epochs: float = setting(0.0, "epochs over which the learning rate rises linearly")
  warmup_minutes: float | None = shared("rise_minutes")
  weight_decay: float = setting(
    1e-4,
    "decoupled weight decay (with lars, a part of the gradient), without batch norms and biases",
    "weight decay, without batch norms and biases",
  )
  clip_norm: float | None = setting(
    None, "largest global norm of the gradient; default: no clipping"
  )
  epsilon_warmup_epochs: float = setting(0.0, "epochs over which epsilon rises linearly")
  epsilon_warmup_minutes: float | None = shared("rise_minutes")
  beta_warmup_epochs: float = setting(0.0, "epochs over which the KL term's weight rises linearly")
  beta_warmup_minutes: float | None = shared("rise_minutes")
  ema: float | None = setting(
    None,
    "decay per step, such as 0.99, of the moving average of weights and batch statistics that is "
    "exported in their place; default: none, or that of acl(ema=0.99)",
  )
  batch_size: int = shared("batch_size", help="images per step, over all replicas")
  accumulate: int | None = setting(
    None,
    "number of equal parts into which a step splits its batch. It averages their gradients, and "
    "needs the memory of one part. The loss must be a mean over images, so simclr, barlow_twins "
    "and vicreg cannot use it. Batch norms, and the multiplier of `keep`, see one part at a time. "
    "Default: 1",
  )
  remat: bool | None = setting(
    None,
    "whether to keep only the inputs of the backbone's blocks for the backward pass, which "
    "computes the rest again. This saves memory for one more forward pass, and the gradients are "
    "the same. The backbone runs in inference mode, as that of a `.keras` file does by default. "
    "Default: no",
  )
  epochs: int | None = shared(
    "epochs",
    text="passes over the data; default: 100, or with `minutes` as many as there is time for",
    help="passes over the data; default: 100",
  )
  minutes: float | None = setting(
    None,
    "minutes of training, not counting compilation, probes, pictures and checkpoints (`seconds` in "
    "metrics.jsonl). All schedules follow the clock. A resumed run ends on time, but its result "
    "is not identical in every bit. Default: the training ends after `epochs`",
    "train this long, instead of --epochs",
  )
  seed: int = shared("seed")
  precision: str = setting("float32", "float32 or mixed_bfloat16")
  strategy: str = setting("auto", "auto, one, mirrored, multi_worker or tpu")
  steps_per_execution: int | None = setting(
    None,
    "steps that the device takes at once without returning to Python, for accelerators; a divisor "
    "of the steps of an epoch; default: 1",
  )
  log_every: int = shared("log_every")
  checkpoint_every: int = setting(500, "steps between checkpoints", free=True)
  init_from: str | None = setting(
    None,
    'folder of another run, or `"preset:NAME"`: its encoder\'s weights are the start; heads of '
    "another shape start from random weights",
  )
  probe_split: str | None = setting(
    None,
    "held-out labelled images for the online k-nearest-neighbour accuracy; default: no probe. "
    "Only the probe reads labels",
    free=True,
  )
  probe_examples: int = setting(2000, "number of images of the probe, at least 2")
  max_bad_steps: int = setting(
    20,
    "a step whose loss or gradient is not finite is skipped; after this many in a row the "
    "training stops, and `bad_batch.npz` holds the first of these batches",
    free=True,
  )
  data_service: str | None = setting(
    None,
    "HOST:PORT,HOST:PORT, the input workers that make the batches (launch/input_worker.py); "
    "default: this process makes the same batches",
    free=True,
  )


@dataclasses.dataclass(frozen=True, init=False, eq=False, repr=False)
class Train(Pretrain):
  """The settings of `python -m urkle_tf.train`."""

  MAIN = (
    *("dataset", "data_dir", "image_size", "output_dir", "pretext", "robustness", "augment"),
    *("encoder", "loc", "norm", "epsilon", "attack_steps", "batch_size", "epochs", "minutes"),
    "learning_rate",
  )

  dry_run: bool = setting(
    False, "estimate the cost of the training from a few steps, and write nothing"
  )
  trust: bool = shared("trust")


@dataclasses.dataclass(frozen=True, eq=False)
class Adapt:
  """The settings of `urkle_tf.adapt`."""

  encoder: str = shared(
    "encoder", REQUIRED, text='folder of the exported encoder, or `"preset:NAME"`'
  )
  output_dir: str = shared(
    "output_dir",
    REQUIRED,
    text="the run's folder; the same call on it resumes the run, or finds it finished",
    help="the run's folder; the same command resumes it",
  )
  protocol: str = setting(
    "slf",
    'spec of the protocol. `"slf"`: a frozen encoder, and a head that is trained on clean images. '
    '`"alf"`: the same on attacked images. `"aff(beta=6)"`: encoder and head, by TRADES. '
    '`"similarity(weight=1)"`: encoder and head on clean images, with the encoder kept near its '
    'start. `"semi_supervised(beta=6, weight=0.5)"`: few labels; robustness is learned from all '
    "the images",
    "slf alf aff similarity semi_supervised",
  )
  head: str = setting("linear", "linear or mlp(width=256, layers=3)")
  features: str = setting(
    "loc",
    "input of a head on a frozen encoder: loc (its z) or pooled (the features below loc and scale, "
    "without noise)",
  )
  dataset: str = shared(
    "dataset",
    text="TFDS name, digits (bundled) or folder:PATH; for other labels, such as "
    '`"mnist:parity"`, see docs/finetuning.md',
    help="TFDS name, digits or folder:PATH, with labels",
  )
  data_dir: str | None = shared("data_dir")
  download: bool = shared("download")
  split: str = shared("split", text="labelled split, with slices", help="the labelled split")
  validation_split: str | None = setting(
    None,
    "held-out images to report on. Protocols that attack keep the epoch that does best on the "
    "first 1,000 of them under attack; without such images, they keep the last epoch. `slf` "
    "chooses the weight decay on them. Without any, or if they are test images, it holds out a "
    "tenth of the labelled images",
    "held-out images to report on",
  )
  examples: int | None = shared("examples")
  image_size: int | None = shared("image_size")
  labels: float | None = setting(
    None,
    "how many labels to use, a count or a fraction below 1, drawn from each class in proportion; "
    "default: all",
    "how many: a count, or a fraction below 1",
  )
  augment: str = setting("none", "augmentation of the images: none or crop(padding=4)")
  augment_copies: int = setting(
    1,
    "how many augmented copies of each image `slf` uses, besides the image itself. Other "
    "protocols augment again in every epoch",
  )
  noise: float | None = setting(
    None,
    "standard deviation, in pixel units, of Gaussian noise on the images that `slf` learns from, "
    "for randomised smoothing: see docs/certificates.md. It is not clipped, and each copy of an "
    "image has its own. Validation images get it too",
  )
  norm: str | None = shared(
    "norm",
    None,
    text='norm of the attack: `"linf"`, `"l2"` or `"l1"`; default: that of the encoder\'s '
    "training. Another one needs `epsilon`",
  )
  epsilon: float | None = shared(
    "epsilon",
    None,
    text="radius of the attack in pixel units of [0, 1]; default: that of the encoder's training",
    help="radius of the attack; default: that of the encoder",
  )
  attack_steps: int | None = shared(
    "attack_steps", text="gradient steps of the attack; default: 10"
  )
  attack_step_size: float | None = shared("attack_step_size")
  optimizer: str | None = setting(
    None,
    'spec of the optimizer: `"adamw"`, `"sgd(momentum=0.9)"` or `"lars"`. Its default, like '
    "those of the settings below, depends on `protocol`",
  )
  learning_rate: float | None = setting(None, "highest learning rate; cosine to 0 per step")
  weight_decay: float | None = setting(
    None,
    "decoupled weight decay (with lars, a part of the gradient), without biases and batch norms; "
    "slf chooses it by default",
    "weight decay, without biases and batch norms; slf chooses it by default",
  )
  select: str | None = setting(
    None,
    "accuracy (for numbers, error) by which slf chooses the weight decay: clean, or robust (under "
    "attack); default: robust if the encoder was trained adversarially",
  )
  batch_size: int | None = shared("batch_size", None, text="images per step")
  epochs: int | None = shared("epochs", text="passes over the labelled images")
  samples: int = setting(20, "samples of z that a served prediction averages over")
  seed: int = shared("seed")
  log_every: int = shared("log_every")


@dataclasses.dataclass(frozen=True, init=False, eq=False, repr=False)
class Finetune(Adapt):
  """The settings of `python -m urkle_tf.finetune`."""

  MAIN = (
    *("encoder", "output_dir", "dataset", "data_dir", "image_size", "split", "validation_split"),
    *("labels", "protocol", "head", "epsilon", "epochs", "seed"),
  )

  seeds: int | None = setting(
    None,
    "number of runs, with seeds --seed, --seed + 1, ..., in OUTPUT_DIR/seed-N; seeds.json has "
    "their mean and spread",
  )
  trust: bool = shared("trust")


@dataclasses.dataclass(frozen=True, eq=False)
class Assess:
  """The settings of `urkle_tf.assess`."""

  classifier: str | None = setting(
    None,
    'folder of the exported classifier, or `"preset:NAME"`; or any other model: the folder of a '
    "SavedModel or a `.keras` file: see docs/any_model.md",
    "exported folder, preset:NAME, SavedModel or .keras file",
  )
  encoder: str | None = shared(
    "encoder",
    text='an encoder instead: the folder of an export, `"preset:NAME"`, or any other model of '
    "images in [0, 1] -> embeddings (a `.keras` file or the folder of a SavedModel). It is "
    "measured without labels, or as a classifier with `prototypes` or `head`",
    help="instead: an encoder, measured without labels",
  )
  prototypes: str | None = setting(
    None,
    "`.npy` file, float32 [classes, d], with a vector for each class in the data's order, such as "
    "a text tower's embeddings of their names. It makes the encoder a classifier, whose logits are "
    "100 times the cosine of embedding and vector",
    "for an encoder: FILE.npy, zero-shot by cosine",
  )
  head: str | None = setting(
    None,
    "what makes the encoder a classifier: a `.keras` file of a model from embeddings to logits or "
    'probabilities, or `"knn(split=train, neighbours=20, temperature=0.07)"`, the weighted vote of '
    "the nearest images of a labelled split",
    "for an encoder: FILE.keras or knn(split=train)",
  )
  output_dir: str | None = shared(
    "output_dir",
    text="where report.json, report.md and figures go. The command needs it; in Python, None "
    "writes nothing",
    help="where report.json and report.md go",
  )
  dataset: str = shared("dataset")
  data_dir: str | None = shared("data_dir")
  download: bool = shared("download")
  split: str = shared("split", "test", help="measure this split")
  examples: int | None = shared("examples")
  image_size: int | None = shared("image_size")
  attacks: str | list[str] = setting(
    "pgd,fgsm",
    'specs, in a list or separated by commas: `"pgd(steps=100, restarts=2),fgsm"`; also '
    "rs_fgsm, apgd, apgd_ce, apgd_dlr, apgd_t, fab_t, square, hop_skip_jump, and autoattack and "
    "worst_of_all, which run several",
    "pgd(steps=100) fgsm apgd_ce apgd_t fab_t square autoattack",
  )
  norm: str | None = shared(
    "norm",
    None,
    text='`"linf"`, `"l2"` or `"l1"`; default: that of the export\'s training, or linf. Another '
    "one needs `epsilon`",
    help="linf, l2 or l1; default: that of the training",
  )
  epsilon: float | None = shared(
    "epsilon", None, text="radius in pixel units of [0, 1]; default: that of the training, or 8/255"
  )
  epsilons: list[float] | None = setting(
    None,
    "several radii instead, in pixel units; the representation and the bound use the first",
    "radii in pixel units: 8/255,16/255",
  )
  attack_steps: int = shared(
    "attack_steps", 20, text="steps of pgd and apgd, if the spec gives none"
  )
  attack_step_size: float | None = shared(
    "attack_step_size",
    text="size of pgd's steps in pixel units, if the spec gives none; default: 2.5 epsilon / steps",
  )
  restarts: int = setting(1, "runs of pgd and apgd from different starts, if the spec gives none")
  eot: int | None = setting(
    None,
    "samples of z in each step against the sampled classifier; default: 20; to publish: 50",
    "samples of z per step: 20; 50 to publish",
  )
  noise: str = setting(
    "fresh", "fresh (new samples of z at every step) or fixed (the same throughout an attack)"
  )
  samples: int = setting(
    200,
    "smallest number of samples of z that score the sampled classifier; the same number of others "
    "chooses which adversarial examples are scored",
  )
  standing: bool = setting(
    False, "attack only images that no earlier row broke: fast. See docs/evaluation.md"
  )
  minutes: float | None = setting(
    None,
    "time limit of the attacks in minutes; one-step attacks come last, and the report says what "
    "was left out; default: no limit",
  )
  checks: bool = setting(
    True,
    "whether to look for signs of masked gradients, on the first 200 images: see "
    "docs/evaluation.md",
  )
  measure: str | list[str] | None = setting(
    None,
    'specs of measurements, in a list or separated by commas: `"bound(loss_cap=4, steps=200)"` '
    "adds one, or sets the options of a usual one; a new one is a file in "
    "`urkle_tf/evaluation/measurements`",
  )
  certify: str | None = setting(
    None,
    'the same as `measure`, for certificates: `"smoothing(noise=0.25, samples=10000)"`, '
    '`"certificate(bounds=linear)"`, or both, separated by a comma',
    "smoothing(noise=0.25), certificate(loss_cap=5)",
  )
  modes: str | None = setting(
    None, "modes to measure, sampled or deterministic (z = mu); default: both if z is sampled"
  )
  corruptions: str | None = setting(
    None,
    "all (15 standard types), names of types separated by commas, or tfds (the corrupted images "
    "that TFDS has prepared); default: none",
    "all, or names of the 15 types",
  )
  severities: list[float] | None = setting(
    None, "severities of the corruptions, numbers from 1 to 5; default: all"
  )
  representation_examples: int = setting(
    1000,
    "number of images for the part about the representation; 0 leaves it out",
    "images for the encoder's part; 0: none",
  )
  loss_cap: float | None = setting(
    None,
    "M of Proposition 1 in nats, above ln of the number of classes; the bound is measured on the "
    "first 1,000 images; default: it is left out",
    "adds the bound of Proposition 1",
  )
  against: str | None = setting(
    None,
    "the folder of another classifier's report, made with `save_images` on the same images: both "
    "are compared image by image (McNemar's exact test). For an encoder alone, the original that "
    "it was made from, as in `encoder`, to measure without labels what has changed",
  )
  abstains: bool | None = setting(
    None,
    "whether the last class of a classifier from elsewhere, one more than the data has, means "
    "that it abstains, which counts as wrong; default: no",
  )
  save_images: bool = setting(False, "save adversarial images and per-image results (images.npz)")
  html: bool = shared("html")
  batch_size: int = shared("batch_size", 250, text="images attacked at once")
  seed: int = shared("seed")
  regressor: str | None = setting(
    None,
    "an exported regressor's folder, instead of a classifier: see docs/finetuning.md. It is "
    "attacked by PGD, and a message names the settings that it does not use",
    "instead: an exported regressor",
  )


@dataclasses.dataclass(frozen=True, init=False, eq=False, repr=False)
class Evaluate(Assess):
  """The settings of `python -m urkle_tf.evaluate`."""

  MAIN = (
    *("classifier", "encoder", "prototypes", "head", "regressor", "output_dir", "dataset"),
    *("data_dir", "split", "examples", "image_size", "attacks", "norm", "epsilons", "eot"),
    *("corruptions", "representation_examples", "html"),
  )

  trust: bool = shared("trust")


@dataclasses.dataclass(frozen=True, eq=False)
class Represent:
  """The settings of `urkle_tf.represent`."""

  encoder: str | None = shared(
    "encoder",
    text="folder of an encoder, or of a classifier or a regressor, whose encoder is used; or "
    '`"preset:NAME"`; or any other model, images -> [n, d] or feature maps, which are averaged '
    "over space: a `.keras` file or the folder of a SavedModel",
    help="an encoder's folder, preset:NAME, SavedModel or .keras file",
  )
  output_dir: str | None = shared(
    "output_dir",
    text="where embeddings.npz and the Projector's files go. The command needs it; in Python, None "
    "writes nothing",
    help="where embeddings.npz goes",
  )
  dataset: str = shared("dataset")
  data_dir: str | None = shared("data_dir")
  download: bool = shared("download")
  split: str = shared(
    "split", "all", text='split, with slices; `"all"` for every image', help="embed this split"
  )
  examples: int | None = shared("examples")
  image_size: int | None = shared("image_size")
  batch_size: int = shared("batch_size", text="images embedded at once")
  projector_examples: int = setting(
    2000,
    "number of images that the Projector shows, the first ones; 0 for none",
    "images that the Projector shows",
  )


@dataclasses.dataclass(frozen=True, init=False, eq=False, repr=False)
class Embed(Represent):
  """The settings of `python -m urkle_tf.embed`."""

  MAIN = (
    *("encoder", "output_dir", "dataset", "data_dir", "split", "examples", "image_size"),
    "projector_examples",
  )

  trust: bool = shared("trust")


COMMANDS = {"train": Train, "finetune": Finetune, "evaluate": Evaluate, "embed": Embed}


# Those of `Assess` that a regressor uses.
OF_REGRESSORS = (
  *("regressor", "output_dir", "dataset", "data_dir", "download", "split", "examples"),
  *("image_size", "norm", "epsilon", "attack_steps", "attack_step_size", "restarts", "eot"),
  *("samples", "measure", "modes", "batch_size", "seed", "html"),
)
FREE = {
  field.name
  for command in COMMANDS.values()
  for field in dataclasses.fields(command)
  if field.metadata["setting"].free
}

_KINDS = {str: "str", int: "int", bool: "bool", float: "number", list[float]: "numbers"}


def _number(value):
  return int(value) if isinstance(value, numbers.Integral) else float(value)


# {kind: (what its values are in Python, in words, from these to what its flag gives)}.
_TYPES: dict[str, tuple[Any, str, Any]] = {
  "str": ((str, os.PathLike), "a text", os.path.expanduser),
  "int": (numbers.Integral, "a whole number", int),
  "bool": (bool, "True or False", bool),
  "number": (numbers.Real, "a number", _number),
  "numbers": (numbers.Real, "a list of numbers", _number),
}


def kind(field):
  """The kind of a field's flag: str, int, bool, number (8/255) or numbers (a list)."""
  first = typing.get_args(field.type)[0] if isinstance(field.type, types.UnionType) else field.type
  return _KINDS[first]


def _typed(field, value):
  """A value given in Python as the flag gives it: a path as text, a NumPy scalar as a number.

  A `~` at the start of a path is the home folder: shells leave it in `--encoder=~/runs/x`.

  Raises:
    UserError: if it is not of the field's type.
  """
  allowed = typing.get_args(field.type)
  if value is None and (field.default is REQUIRED or type(None) in allowed):
    return None  # the command's REQUIRED flags are None until they are given
  known, words, plain = _TYPES[kind(field)]
  several = kind(field) == "numbers" or (list[str] in allowed and not isinstance(value, str))
  parts = value if several else [value]
  if not isinstance(parts, (list, tuple)) or not all(isinstance(part, known) for part in parts):
    raise errors.UserError(f"{field.name} must be {words}, got {value!r}")
  if not all(abs(_number(part)) < math.inf for part in parts if isinstance(part, numbers.Real)):
    raise errors.UserError(f"{field.name} must be finite, got {value!r}")
  found = [plain(part) for part in parts]
  return found if several else found[0]


def typed(given):
  """Settings with the values that flags give; raises `UserError` for one of another type."""
  fields = dataclasses.fields(given)
  return type(given)(**{field.name: _typed(field, getattr(given, field.name)) for field in fields})


def data_of(given):
  """The settings that choose the images, a dict of arguments of `data.sources.load`."""
  names = ("dataset", "split", "data_dir", "download", "image_size", "examples")
  return {name: getattr(given, name) for name in names}


def text(field):
  """The full text of a field's setting."""
  return field.metadata["setting"].text


def documented(doc, command):
  """Adds the arguments of a command to a docstring.

  Args:
    doc: the docstring without them; they go before its section "Returns".
    command: a dataclass of settings.
  """
  lines = ["Args:"]
  for field in dataclasses.fields(command):
    lines += textwrap.wrap(
      f"{field.name}: {text(field)}.",
      96,
      initial_indent="  ",
      subsequent_indent="    ",
      break_on_hyphens=False,
      break_long_words=False,
    )
  before, returns, after = inspect.cleandoc(doc).partition("\nReturns:")
  return "\n".join([before, *lines, returns + after])


def signature(command):
  """The signature of a function that takes a command's settings and returns a dict."""
  return inspect.signature(command).replace(return_annotation=dict[str, Any])


def arguments(command):
  """Turns a function of a command's settings into one of keyword arguments.

  Args:
    command: a dataclass of settings.

  Returns:
    A decorator of `function(settings)`. It adds the arguments to the docstring.
  """

  def decorate(function):
    @functools.wraps(function)
    def call(*values, **named):
      return function(typed(command(*values, **named)))

    vars(call)["__signature__"] = signature(command)
    call.__doc__ = documented(function.__doc__, command)
    return call

  return decorate

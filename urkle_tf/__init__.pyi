"""The public names: written by tools/write_settings.py."""

from typing import Any

__version__: str

from urkle_tf import attacks as attacks
from urkle_tf import data as data
from urkle_tf import networks as networks
from urkle_tf import pretexts as pretexts
from urkle_tf import robustness as robustness
from urkle_tf.errors import UserError as UserError
from urkle_tf.export import export_classifier as export_classifier
from urkle_tf.export import export_encoder as export_encoder
from urkle_tf.export import export_regressor as export_regressor
from urkle_tf.export import load_classifier as load_classifier
from urkle_tf.export import load_encoder as load_encoder
from urkle_tf.export import load_regressor as load_regressor
from urkle_tf.export.hub import model_card as model_card
from urkle_tf.export.hub import push_to_hub as push_to_hub
from urkle_tf.export.torch_vits import import_torch_vit as import_torch_vit
from urkle_tf.export.torch_weights import import_torch_state as import_torch_state
from urkle_tf.networks import GaussianEncoder as GaussianEncoder
from urkle_tf.networks.presets import presets as presets
from urkle_tf.networks.saved import trust as trust
from urkle_tf.regulariser import UrkleRegularizer as UrkleRegularizer
from urkle_tf.regulariser import kl_robustness as kl_robustness
from urkle_tf.training.robustify import robustify as robustify
from urkle_tf.training.trainer import Trainer as Trainer

def pretrain(
  output_dir: str,
  pretext: str = "simclr",
  robustness: str = "urkle",
  dataset: str = "digits",
  data_dir: str | None = None,
  download: bool = False,
  split: str = "train",
  examples: int | None = None,
  image_size: int | None = None,
  augment: str = "simclr",
  augment_on_device: bool = False,
  encoder: str = "resnet18",
  loc: str | None = None,
  latent_dim: int | None = None,
  batch_statistics: bool | None = None,
  min_scale: float = 0.1,
  max_scale: float = 0.25,
  norm: str = "linf",
  epsilon: float = 0.03137254901960784,
  attack_steps: int = 5,
  attack_step_size: float | None = None,
  attack: str | None = None,
  attack_schedule: str | None = None,
  attack_precision: str | None = None,
  optimizer: str = "sgd",
  learning_rate: float | None = None,
  warmup_epochs: float = 0.0,
  warmup_minutes: float | None = None,
  weight_decay: float = 0.0001,
  clip_norm: float | None = None,
  epsilon_warmup_epochs: float = 0.0,
  epsilon_warmup_minutes: float | None = None,
  beta_warmup_epochs: float = 0.0,
  beta_warmup_minutes: float | None = None,
  ema: float | None = None,
  batch_size: int = 256,
  accumulate: int | None = None,
  remat: bool | None = None,
  epochs: int | None = None,
  minutes: float | None = None,
  seed: int = 0,
  precision: str = "float32",
  strategy: str = "auto",
  steps_per_execution: int | None = None,
  log_every: int = 50,
  checkpoint_every: int = 500,
  init_from: str | None = None,
  probe_split: str | None = None,
  probe_examples: int = 2000,
  max_bad_steps: int = 20,
  data_service: str | None = None,
) -> dict[str, Any]:
  """Pre-trains an encoder into a run's folder, or resumes the folder's run.

  Args:
    output_dir: the run's folder; the same call or command on it resumes the run.
    pretext: spec of what is learned: `"simclr(temperature=0.5)"`, `"byol"`, `"simsiam"`,
      `"barlow_twins"`, `"vicreg"`, `"distil(teacher=PATH)"`, `"clusters(teacher=PATH)"`,
      `"keep(original=FILE)"`, `"vae"`, `"ae"`, `"supervised"`.
    robustness: spec of the robustness scheme: `"none"`, `"urkle(k=8)"`, `"urkle(beta=0.1)"`,
      `"trades(beta=6)"`, `"adversarial_training"`, `"rocl"`, `"acl(form=ds)"`.
    dataset: TFDS name, digits (bundled) or folder:PATH.
    data_dir: folder of prepared TFDS data; default: TFDS's own folder.
    download: let TFDS download and prepare the data.
    split: split, with slices: train[:90%].
    examples: use only this many examples of the split, the first ones.
    image_size: side in pixels of the squares that images are resized to; default: the images' own
      size; if their sizes differ, 224, but 32 for a folder in which most are below 96.
    augment: spec of the recipe that makes the views: `"simclr(strength=0.5)"`,
      `"augmix(base=simclr)"`, `"randaugment"`, `"affine"`, `"crop"` or `"none"`; or a list with
      one for each view, as in `"simclr, augmix(base=simclr)"`.
    augment_on_device: make the views on the accelerator, inside the step.
    encoder: spec of the backbone, `"resnet18(width=64)"` or `"convnet(width=48)"`; or a `.keras`
      file; or `"preset:NAME"`: the network of a preset, whose weights are the start, and which
      also sets loc, latent_dim and the bounds of sigma.
    loc: where mu lies: `"sphere"`, `"centred_sphere"`, `"pooled"`, `"dense"` or `"dense_sphere"`
      (`GaussianEncoder`); default: sphere; dense for vae, ae and supervised; pooled for keep.
    latent_dim: d_z, the dimension of z; default: the width of the features.
    batch_statistics: whether the backbone runs in training mode, in which batch norms use the
      statistics of each batch and update their own; default: yes, except for a `.keras` file,
      whose statistics stay.
    min_scale: smallest sigma: absolute on a sphere, otherwise in units of the spread of mu.
    max_scale: largest sigma, in the same units.
    norm: norm of the threat model: linf, or l2 or l1, which need `epsilon`.
    epsilon: radius of the threat model in pixel units of [0, 1]: 8/255 or 0.03.
    attack_steps: PGD steps of the inner maximisation.
    attack_step_size: size of the attack's steps in pixel units; default: 2.5 epsilon / steps.
    attack: spec of the attack: `"pgd(start=0.5)"`, `"apgd"`, or `"rs_fgsm"`, `"fgsm"` or
      `"n_fgsm"`, which take one step; default: pgd. `"n_fgsm"` leaves the ball of epsilon, so
      pictures and the probe use PGD instead.
    attack_schedule: how PGD's number of steps changes over the training: rising(first=1) or
      controlled(every=300); default: constant.
    attack_precision: mixed_bfloat16 for the attack's passes only; default: that of precision.
    optimizer: spec of the optimizer: `"sgd(momentum=0.9)"`, `"lars(momentum=0.9, trust=0.001)"`,
      `"adamw"` or `"adamw(layer_decay=0.75)"`, where each block of the backbone has 0.75 of the
      learning rate of the block above it, and the heads have the full rate.
    learning_rate: highest learning rate; cosine to 0, per step or by the clock; default: 0.1 for
      sgd, 0.001 for adamw, 1 for lars.
    warmup_epochs: epochs over which the learning rate rises linearly.
    warmup_minutes: the same in minutes, with `minutes`, and fewer than those.
    weight_decay: decoupled weight decay (with lars, a part of the gradient), without batch norms
      and biases.
    clip_norm: largest global norm of the gradient; default: no clipping.
    epsilon_warmup_epochs: epochs over which epsilon rises linearly.
    epsilon_warmup_minutes: the same in minutes, with `minutes`, and fewer than those.
    beta_warmup_epochs: epochs over which the KL term's weight rises linearly.
    beta_warmup_minutes: the same in minutes, with `minutes`, and fewer than those.
    ema: decay per step, such as 0.99, of the moving average of weights and batch statistics that
      is exported in their place; default: none, or that of acl(ema=0.99).
    batch_size: examples per step, over all replicas.
    accumulate: number of equal parts into which a step splits its batch. It averages their
      gradients, and needs the memory of one part. The loss must be a mean over images, so simclr,
      barlow_twins and vicreg cannot use it. Batch norms, and the multiplier of `keep`, see one
      part at a time. Default: 1.
    remat: whether to keep only the inputs of the backbone's blocks for the backward pass, which
      computes the rest again. This saves memory for one more forward pass, and the gradients are
      the same. The backbone runs in inference mode, as that of a `.keras` file does by default.
      Default: no.
    epochs: passes over the data; default: 100, or with `minutes` as many as there is time for.
    minutes: minutes of training, not counting compilation, probes, pictures and checkpoints
      (`seconds` in metrics.jsonl). All schedules follow the clock. A resumed run ends on time,
      but its result is not identical in every bit. Default: the training ends after `epochs`.
    seed: seed of all randomness.
    precision: float32 or mixed_bfloat16.
    strategy: auto, one, mirrored, multi_worker or tpu.
    steps_per_execution: steps that the device takes at once without returning to Python, for
      accelerators; a divisor of the steps of an epoch; default: 1.
    log_every: steps between two rows of metrics.
    checkpoint_every: steps between checkpoints.
    init_from: folder of another run, or `"preset:NAME"`: its encoder's weights are the start;
      heads of another shape start from random weights.
    probe_split: held-out labelled images for the online k-nearest-neighbour accuracy; default: no
      probe. Only the probe reads labels.
    probe_examples: number of images of the probe, at least 2.
    max_bad_steps: a step whose loss or gradient is not finite is skipped; after this many in a
      row the training stops, and `bad_batch.npz` holds the first of these batches.
    data_service: HOST:PORT,HOST:PORT, the input workers that make the batches
      (launch/input_worker.py); default: this process makes the same batches.

  Returns:
    The last row of metrics, a dict, with the folders of the exports: `"encoder"`, and after
    supervised training `"classifier"`.

  Raises:
    UserError: for settings, data or folders that are wrong.
    distribution.WorkerLost: when another worker, or an input worker, has ended.
    preemption.Stopped: a `KeyboardInterrupt`, when SIGTERM or Ctrl-C has ended the training, after
      a checkpoint of its last step.

  ```python
  row = urkle_tf.pretrain(
    "runs/digits", dataset="digits", encoder="convnet(width=32, layers=3)", epochs=60
  )
  encoder = urkle_tf.load_encoder(row["encoder"])
  ```
  """

def adapt(
  encoder: str,
  output_dir: str,
  protocol: str = "slf",
  head: str = "linear",
  features: str = "loc",
  dataset: str = "digits",
  data_dir: str | None = None,
  download: bool = False,
  split: str = "train",
  validation_split: str | None = None,
  examples: int | None = None,
  image_size: int | None = None,
  labels: float | None = None,
  augment: str = "none",
  augment_copies: int = 1,
  noise: float | None = None,
  norm: str | None = None,
  epsilon: float | None = None,
  attack_steps: int | None = None,
  attack_step_size: float | None = None,
  optimizer: str | None = None,
  learning_rate: float | None = None,
  weight_decay: float | None = None,
  select: str | None = None,
  batch_size: int | None = None,
  epochs: int | None = None,
  samples: int = 20,
  seed: int = 0,
  log_every: int = 50,
) -> dict[str, Any]:
  """Makes a classifier or a regressor from an exported encoder, in a run's folder.

  Writes `flags.cfg`, `metrics.jsonl`, `labels.json` if `labels` is given, and `classifier/`, or
  `regressor/` if the labels are numbers.  Called again with the same settings, a finished run
  trains nothing and returns the same.  A killed run resumes at its last epoch.  A killed `slf` run
  keeps the weight decays that it has measured, and trains the head again from the start.  SIGTERM
  and Ctrl-C finish the step and write a checkpoint, from which all protocols resume.  However often
  a run is interrupted, the result is identical in every bit.

  Args:
    encoder: folder of the exported encoder, or `"preset:NAME"`.
    output_dir: the run's folder; the same call on it resumes the run, or finds it finished.
    protocol: spec of the protocol. `"slf"`: a frozen encoder, and a head that is trained on clean
      images. `"alf"`: the same on attacked images. `"aff(beta=6)"`: encoder and head, by TRADES.
      `"similarity(weight=1)"`: encoder and head on clean images, with the encoder kept near its
      start. `"semi_supervised(beta=6, weight=0.5)"`: few labels; robustness is learned from all
      the images.
    head: linear or mlp(width=256, layers=3).
    features: input of a head on a frozen encoder: loc (its z) or pooled (the features below loc
      and scale, without noise).
    dataset: TFDS name, digits (bundled) or folder:PATH; for other labels, such as
      `"mnist:parity"`, see docs/finetuning.md.
    data_dir: folder of prepared TFDS data; default: TFDS's own folder.
    download: let TFDS download and prepare the data.
    split: labelled split, with slices.
    validation_split: held-out images to report on. Protocols that attack keep the epoch that does
      best on the first 1,000 of them under attack; without such images, they keep the last epoch.
      `slf` chooses the weight decay on them. Without any, or if they are test images, it holds
      out a tenth of the labelled images.
    examples: use only this many examples of the split, the first ones.
    image_size: side in pixels of the squares that images are resized to; default: the images' own
      size; if their sizes differ, 224, but 32 for a folder in which most are below 96.
    labels: how many labels to use, a count or a fraction below 1, drawn from each class in
      proportion; default: all.
    augment: augmentation of the images: none or crop(padding=4).
    augment_copies: how many augmented copies of each image `slf` uses, besides the image itself.
      Other protocols augment again in every epoch.
    noise: standard deviation, in pixel units, of Gaussian noise on the images that `slf` learns
      from, for randomised smoothing: see docs/certificates.md. It is not clipped, and each copy
      of an image has its own. Validation images get it too.
    norm: norm of the attack: `"linf"`, `"l2"` or `"l1"`; default: that of the encoder's training.
      Another one needs `epsilon`.
    epsilon: radius of the attack in pixel units of [0, 1]; default: that of the encoder's
      training.
    attack_steps: gradient steps of the attack; default: 10.
    attack_step_size: size of the attack's steps in pixel units; default: 2.5 epsilon / steps.
    optimizer: spec of the optimizer: `"adamw"`, `"sgd(momentum=0.9)"` or `"lars"`. Its default,
      like those of the settings below, depends on `protocol`.
    learning_rate: highest learning rate; cosine to 0 per step.
    weight_decay: decoupled weight decay (with lars, a part of the gradient), without biases and
      batch norms; slf chooses it by default.
    select: accuracy (for numbers, error) by which slf chooses the weight decay: clean, or robust
      (under attack); default: robust if the encoder was trained adversarially.
    batch_size: images per step.
    epochs: passes over the labelled images.
    samples: samples of z that a served prediction averages over.
    seed: seed of all randomness.
    log_every: steps between two rows of metrics.

  Returns:
    The row of metrics of the exported weights, a dict, with the folder of the export,
    `"classifier"` or `"regressor"`.  If the weight decay was chosen, also `"selection"`, as in
    metadata.json: {"select", "held_out", "images", "weight_decay", "candidates"}.

  Raises:
    UserError: for settings, data or folders that are wrong.
    preemption.Stopped: a `KeyboardInterrupt`, when SIGTERM or Ctrl-C has ended the training.

  ```python
  row = urkle_tf.adapt("runs/digits/encoder", "runs/digits-slf", dataset="digits")
  classifier = urkle_tf.load_classifier(row["classifier"])
  ```
  """

def assess(
  classifier: str | None = None,
  encoder: str | None = None,
  prototypes: str | None = None,
  head: str | None = None,
  output_dir: str | None = None,
  dataset: str = "digits",
  data_dir: str | None = None,
  download: bool = False,
  split: str = "test",
  examples: int | None = None,
  image_size: int | None = None,
  attacks: str | list[str] = "pgd,fgsm",
  norm: str | None = None,
  epsilon: float | None = None,
  epsilons: list[float] | None = None,
  attack_steps: int = 20,
  attack_step_size: float | None = None,
  restarts: int = 1,
  eot: int | None = None,
  noise: str = "fresh",
  samples: int = 200,
  standing: bool = False,
  minutes: float | None = None,
  checks: bool = True,
  measure: str | list[str] | None = None,
  certify: str | None = None,
  modes: str | None = None,
  corruptions: str | None = None,
  severities: list[float] | None = None,
  representation_examples: int = 1000,
  loss_cap: float | None = None,
  against: str | None = None,
  abstains: bool | None = None,
  save_images: bool = False,
  html: bool = False,
  batch_size: int = 250,
  seed: int = 0,
  regressor: str | None = None,
) -> dict[str, Any]:
  """Measures a classifier, clean and attacked, and its encoder; or an encoder, or a regressor.

  Args:
    classifier: folder of the exported classifier, or `"preset:NAME"`; or any other model: the
      folder of a SavedModel or a `.keras` file: see docs/any_model.md.
    encoder: an encoder instead: the folder of an export, `"preset:NAME"`, or any other model of
      images in [0, 1] -> embeddings (a `.keras` file or the folder of a SavedModel). It is
      measured without labels, or as a classifier with `prototypes` or `head`.
    prototypes: `.npy` file, float32 [classes, d], with a vector for each class in the data's
      order, such as a text tower's embeddings of their names. It makes the encoder a classifier,
      whose logits are 100 times the cosine of embedding and vector.
    head: what makes the encoder a classifier: a `.keras` file of a model from embeddings to
      logits or probabilities, or `"knn(split=train, neighbours=20, temperature=0.07)"`, the
      weighted vote of the nearest images of a labelled split.
    output_dir: where report.json, report.md and figures go. The command needs it; in Python, None
      writes nothing.
    dataset: TFDS name, digits (bundled) or folder:PATH.
    data_dir: folder of prepared TFDS data; default: TFDS's own folder.
    download: let TFDS download and prepare the data.
    split: split, with slices: train[:90%].
    examples: use only this many examples of the split, the first ones.
    image_size: side in pixels of the squares that images are resized to; default: the images' own
      size; if their sizes differ, 224, but 32 for a folder in which most are below 96.
    attacks: specs, in a list or separated by commas: `"pgd(steps=100, restarts=2),fgsm"`; also
      rs_fgsm, apgd, apgd_ce, apgd_dlr, apgd_t, fab_t, square, hop_skip_jump, and autoattack and
      worst_of_all, which run several.
    norm: `"linf"`, `"l2"` or `"l1"`; default: that of the export's training, or linf. Another one
      needs `epsilon`.
    epsilon: radius in pixel units of [0, 1]; default: that of the training, or 8/255.
    epsilons: several radii instead, in pixel units; the representation and the bound use the
      first.
    attack_steps: steps of pgd and apgd, if the spec gives none.
    attack_step_size: size of pgd's steps in pixel units, if the spec gives none; default: 2.5
      epsilon / steps.
    restarts: runs of pgd and apgd from different starts, if the spec gives none.
    eot: samples of z in each step against the sampled classifier; default: 20; to publish: 50.
    noise: fresh (new samples of z at every step) or fixed (the same throughout an attack).
    samples: smallest number of samples of z that score the sampled classifier; the same number of
      others chooses which adversarial examples are scored.
    standing: attack only images that no earlier row broke: fast. See docs/evaluation.md.
    minutes: time limit of the attacks in minutes; one-step attacks come last, and the report says
      what was left out; default: no limit.
    checks: whether to look for signs of masked gradients, on the first 200 images: see
      docs/evaluation.md.
    measure: specs of measurements, in a list or separated by commas: `"bound(loss_cap=4,
      steps=200)"` adds one, or sets the options of a usual one; a new one is a file in
      `urkle_tf/evaluation/measurements`.
    certify: the same as `measure`, for certificates: `"smoothing(noise=0.25, samples=10000)"`,
      `"certificate(bounds=linear)"`, or both, separated by a comma.
    modes: modes to measure, sampled or deterministic (z = mu); default: both if z is sampled.
    corruptions: all (15 standard types), names of types separated by commas, or tfds (the
      corrupted images that TFDS has prepared); default: none.
    severities: severities of the corruptions, numbers from 1 to 5; default: all.
    representation_examples: number of images for the part about the representation; 0 leaves it
      out.
    loss_cap: M of Proposition 1 in nats, above ln of the number of classes; the bound is measured
      on the first 1,000 images; default: it is left out.
    against: the folder of another classifier's report, made with `save_images` on the same
      images: both are compared image by image (McNemar's exact test). For an encoder alone, the
      original that it was made from, as in `encoder`, to measure without labels what has changed.
    abstains: whether the last class of a classifier from elsewhere, one more than the data has,
      means that it abstains, which counts as wrong; default: no.
    save_images: save adversarial images and per-image results (images.npz).
    html: write report.html too: the report as one file for a browser.
    batch_size: images attacked at once.
    seed: seed of all randomness.
    regressor: an exported regressor's folder, instead of a classifier: see docs/finetuning.md. It
      is attacked by PGD, and a message names the settings that it does not use.

  Returns:
    The content of report.json, a dict; accuracies are fractions with a 95% interval.

  Raises:
    UserError: for settings, data or folders that do not fit.

  ```python
  report = urkle_tf.assess(classifier="runs/digits-slf/classifier", dataset="digits", attacks="pgd")
  clean = report["clean"]["accuracy"]  # a fraction
  row = report["attacks"][0]  # {"name": "pgd", "accuracy": ..., "interval": [low, high], ...}
  ```
  """

def represent(
  encoder: str | None = None,
  output_dir: str | None = None,
  dataset: str = "digits",
  data_dir: str | None = None,
  download: bool = False,
  split: str = "all",
  examples: int | None = None,
  image_size: int | None = None,
  batch_size: int = 256,
  projector_examples: int = 2000,
) -> dict[str, Any]:
  """Embeds images, and writes the embeddings and files for TensorBoard's Projector.

  Args:
    encoder: folder of an encoder, or of a classifier or a regressor, whose encoder is used; or
      `"preset:NAME"`; or any other model, images -> [n, d] or feature maps, which are averaged
      over space: a `.keras` file or the folder of a SavedModel.
    output_dir: where embeddings.npz and the Projector's files go. The command needs it; in
      Python, None writes nothing.
    dataset: TFDS name, digits (bundled) or folder:PATH.
    data_dir: folder of prepared TFDS data; default: TFDS's own folder.
    download: let TFDS download and prepare the data.
    split: split, with slices; `"all"` for every image.
    examples: use only this many examples of the split, the first ones.
    image_size: side in pixels of the squares that images are resized to; default: the images' own
      size; if their sizes differ, 224, but 32 for a folder in which most are below 96.
    batch_size: images embedded at once.
    projector_examples: number of images that the Projector shows, the first ones; 0 for none.

  Returns:
    The content of embeddings.npz, NumPy arrays in the order of the split: "loc", float32 [n, d];
    "scale", of the same shape, for an encoder of this package; "labels" [n] and "class_names", if
    the data has them; "names", paths within the folder, if images are files.  The same folder gets
    vectors.tsv (loc), metadata.tsv, sprite.png and projector_config.pbtxt.

  Raises:
    UserError: for settings, data or folders that are wrong.

  ```python
  found = urkle_tf.represent("runs/digits/encoder", dataset="digits", examples=8)
  embeddings, labels = found["loc"], found["labels"]  # float32 [8, d_z] and int [8]
  ```
  """

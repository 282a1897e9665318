"""Makes a classifier, or a regressor, of an exported encoder.

  python -m urkle_tf.finetune --encoder=runs/digits/encoder --output_dir=head
  python -m urkle_tf.finetune --encoder=runs/digits/encoder --output_dir=runs/digits-aff
    --protocol="aff(beta=6)" --validation_split=train[90%:] --split=train[:90%] --labels=0.1
  python -m urkle_tf.finetune --encoder=runs/digits/encoder --output_dir=runs/digits-angle
    --dataset="digits:rotation(degrees=45)"
  python -m urkle_tf.finetune --encoder=runs/digits/encoder --output_dir=runs/digits-few
    --labels=100 --seeds=5 --validation_split=test

The same command on the same --output_dir finds it finished, or goes on.  SIGTERM and Ctrl-C end the
step, write a checkpoint, and exit with 143 and 130; a second one does not wait.
"""

from urkle_tf import command_line

_SHARED = {
  "encoder": ...,
  "output_dir": ...,
  **command_line.IMAGES,
  "norm": None,
  "epsilon": None,
  "attack_steps": ...,
  "attack_step_size": ...,
  "batch_size": None,
  "epochs": ...,
  "seed": ...,
  "log_every": ...,
}
_OWN = {
  "protocol": (
    "str",
    "slf",
    "slf: frozen encoder, head trained on clean images; alf: on attacked images; aff(beta=6): "
    "encoder and head, by TRADES; similarity(weight=1): encoder and head on clean images, held "
    "near the encoder; semi_supervised(beta=6, weight=0.5): few labels, all images",
  ),
  "head": ("str", "linear", "linear or mlp(width=256, layers=3)"),
  "features": ("str", "loc", "what a head on a frozen encoder takes: loc, or pooled: below it"),
  "labels": ("number", None, "how many labels: a count, or a fraction below 1; default all"),
  "validation_split": (
    "str",
    None,
    "held-out images to report on, and to choose by: the weight decay of slf (default: a tenth of "
    "the labelled images), the epoch where there is an attack",
  ),
  "augment": ("str", "none", "none or crop(padding=4)"),
  "augment_copies": ("int", 1, "slf: augmented copies of each image, beside the image itself"),
  "optimizer": ("str", None, "sgd(momentum=0.9), lars or adamw; default, as below: by protocol"),
  "learning_rate": ("number", None, "its highest value; cosine to 0"),
  "weight_decay": ("number", None, "decoupled; biases left out; default of slf: it is chosen"),
  "select": (
    "str",
    None,
    "slf: what weight decay is chosen by, clean or robust accuracy; default robust where the "
    "encoder was trained with an adversary",
  ),
  "samples": ("int", 20, "samples of z that a served prediction averages over"),
}
_SEEDS = {
  "seeds": (
    "int",
    None,
    "so many runs, from --seed on, in OUTPUT_DIR/seed-N; their mean and deviation in seeds.json",
  ),
}
_MAIN = {
  "encoder": "the folder of a trained encoder, or preset:NAME",
  "output_dir": "the run's folder; the same command finds it finished",
  "dataset": "TFDS name, digits or folder:PATH; with labels",
  "data_dir": "where prepared TFDS data lies",
  "image_size": "resize to squares of so many pixels",
  "split": "the labelled split",
  "validation_split": "held-out images to report on",
  "labels": "how many: a count, or a fraction below 1",
  "protocol": "slf alf aff similarity semi_supervised",
  "head": "linear or mlp(width=256, layers=3)",
  "epsilon": "of alf and aff; default that of the encoder",
  "epochs": "passes over the labelled images",
  "seed": "all randomness is a function of it",
}
_RESULTS = {
  "validation_accuracy": "validation accuracy: {:.2%}",
  "validation_robust_accuracy": "validation accuracy, attacked: {:.2%}",
  "validation_rmse": "validation error (root mean square): {:.4g}",
  "validation_robust_rmse": "validation error, attacked: {:.4g}",
  "classifier": "classifier: {}",
  "regressor": "regressor: {}",
}


def main():
  """The command line."""
  names = command_line.define(_SHARED, _OWN | _SEEDS, _MAIN)

  def finetune(seeds, **settings):
    downstream = command_line.load("downstream")  # starts TensorFlow: only now

    if seeds is not None:
      result = downstream.adapt_seeds(seeds=seeds, **settings)
      for name, mean in result["mean"].items():
        deviation = result["deviation"].get(name)
        spread = "" if deviation is None else f" ± {deviation:.2g}"
        print(f"{name.replace('_', ' ')}: {mean:.4g}{spread} ({seeds} seeds)")
      return
    result = downstream.adapt(**settings)
    if "selection" in result:
      print(f"weight decay: {result['selection']['weight_decay']:g}")
    for name, text in _RESULTS.items():
      if name in result:
        print(text.format(result[name]))

  command_line.run(finetune, names)


if __name__ == "__main__":
  main()

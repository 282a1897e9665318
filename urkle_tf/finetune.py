"""Makes a classifier or a regressor from an exported encoder.

  python -m urkle_tf.finetune --encoder=runs/digits/encoder --output_dir=runs/digits-slf
  python -m urkle_tf.finetune --encoder=runs/digits/encoder --output_dir=runs/digits-aff
    --protocol="aff(beta=6)" --validation_split=train[90%:] --split=train[:90%] --labels=0.1
  python -m urkle_tf.finetune --encoder=runs/digits/encoder --output_dir=runs/digits-angle
    --dataset="digits:rotation(degrees=45)"
  python -m urkle_tf.finetune --encoder=runs/digits/encoder --output_dir=runs/digits-few
    --labels=100 --seeds=5 --split=train[:90%] --validation_split=train[90%:]

The same command on the same --output_dir resumes the run, or reports that it is finished.  SIGTERM
and Ctrl-C finish the step, write a checkpoint, and exit with 143 and 130; a second signal ends the
command at once.
"""

from urkle_tf import command_line, settings

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
  names = command_line.define(settings.Finetune)

  def finetune(seeds, **given):
    adapting = command_line.load("downstream.adapting")  # starts TensorFlow: only now

    if seeds is not None:
      result = adapting.adapt_seeds(seeds=seeds, **given)
      for name, mean in result["mean"].items():
        spread = ""
        if name in result["interval"]:
          low, high = result["interval"][name]
          spread = f" ± {result['deviation'][name]:.2g}, {low:.4g} to {high:.4g}"
        print(f"{name.replace('_', ' ')}: {mean:.4g}{spread} ({seeds} seeds)")
      return
    result = adapting.adapt(**given)
    if "selection" in result:
      print(f"weight decay: {result['selection']['weight_decay']:g}")
    for name, text in _RESULTS.items():
      if name in result:
        print(text.format(result[name]))

  command_line.run(finetune, names)


if __name__ == "__main__":
  main()

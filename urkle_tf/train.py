"""Pre-trains a robust encoder without labels.

  python -m urkle_tf.train --flagfile=configs/digits.cfg --output_dir=runs/digits
  python -m urkle_tf.train --dataset=folder:photos --image_size=64 --output_dir=runs/photos

The same command on the same --output_dir resumes the run.  SIGTERM and Ctrl-C finish the step,
write a checkpoint, and exit with 143 and 130; a second signal ends the command at once.
"""

from urkle_tf import command_line, settings


def main():
  """The command line."""
  names = command_line.define(settings.Train)

  def train(dry_run, **given):
    if dry_run:
      forecast = command_line.load("training.forecast")
      found = forecast.forecast(**given)
      print("\n".join(forecast.describe(found, given["batch_size"])))
      return
    pretraining = command_line.load("training.pretraining")  # starts TensorFlow: only now

    result = pretraining.pretrain(**given)
    for kind in ("encoder", "classifier"):
      if kind in result:
        print(f"{kind}: {result[kind]}")

  command_line.run(train, names)


if __name__ == "__main__":
  main()

"""Makes a classifier of an exported encoder.

  python -m urkle_tf.finetune --encoder=runs/digits/encoder --output_dir=runs/digits-slf

The same command on the same --output_dir finds it finished, or trains the head again.
"""

from urkle_tf import command_line

_SHARED = {
  "encoder": ...,
  "output_dir": ...,
  "dataset": ...,
  "data_dir": ...,
  "download": ...,
  "split": ...,
  "examples": ...,
  "image_size": ...,
  "batch_size": 512,
  "epochs": 50,
  "seed": ...,
  "log_every": ...,
}
_OWN = {
  "protocol": ("str", "slf", "slf: frozen encoder, head trained on clean images"),
  "head": ("str", "linear", "linear or mlp(width=256, layers=3)"),
  "labels": ("number", None, "how many labels: a count, or a fraction below 1; default all"),
  "validation_split": ("str", None, "held-out images to report the accuracy on"),
  "augment": ("str", "none", "none or crop(padding=4)"),
  "augment_copies": ("int", 1, "augmented copies of each image, beside the image itself"),
  "optimizer": ("str", "adamw", "adamw or sgd(momentum=0.9)"),
  "learning_rate": ("number", 1e-2, "its highest value; cosine to 0"),
  "weight_decay": ("number", 1e-4, "decoupled; biases left out"),
  "samples": ("int", 20, "samples of z that a served prediction averages over"),
}


def main():
  """The command line."""
  names = command_line.define(_SHARED, _OWN)

  def finetune(**settings):
    downstream = command_line.load("downstream")  # starts TensorFlow: only now

    result = downstream.adapt(**settings)
    if "validation_accuracy" in result:
      print(f"validation accuracy: {100 * result['validation_accuracy']:.2f}%")
    print(f"classifier: {result['classifier']}")

  command_line.run(finetune, names)


if __name__ == "__main__":
  main()

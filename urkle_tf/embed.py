"""Writes what an encoder makes of images, as arrays and for TensorBoard's Projector.

  python -m urkle_tf.embed --encoder=runs/digits/encoder --output_dir=embedded
  python -m urkle_tf.embed --encoder=runs/photos/encoder --dataset=folder:photos --image_size=64
    --output_dir=runs/photos-embedded
  tensorboard --logdir=runs/photos-embedded

The last one shows them, with their images.
"""

from urkle_tf import command_line, errors

_SHARED = {
  "encoder": None,
  "output_dir": ...,
  **command_line.IMAGES,
  "split": "all",
  "batch_size": ...,
}
_OWN = {
  "projector_examples": ("int", 2000, "images that the Projector shows; 0 for none"),
}
_MAIN = {
  "encoder": "an encoder's folder, preset:NAME, SavedModel or .keras file",
  "output_dir": "where embeddings.npz goes",
  "dataset": "TFDS name, digits or folder:PATH",
  "data_dir": "where prepared TFDS data lies",
  "split": "embed this split",
  "examples": "only so many images",
  "image_size": "resize to squares of so many pixels",
  "projector_examples": "images that the Projector shows",
}


def main():
  """The command line."""
  names = command_line.define(_SHARED, _OWN, _MAIN)

  def embed(**settings):
    if not settings["output_dir"]:
      raise errors.UserError("give --output_dir=FOLDER: where the embeddings are written")
    embeddings = command_line.load("embeddings")  # starts TensorFlow: only now

    found = embeddings.represent(**settings)
    images, size = found["loc"].shape
    where = f"{settings['output_dir']}/embeddings.npz"
    print(f"embeddings: {where} ({images:,} images, {size} numbers each)")
    if settings["projector_examples"]:
      print(f"to look at them: tensorboard --logdir={settings['output_dir']}")

  command_line.run(embed, names)


if __name__ == "__main__":
  main()

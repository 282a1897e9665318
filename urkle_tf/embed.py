"""Embeds images, and writes the embeddings as arrays and for TensorBoard's Projector.

  python -m urkle_tf.embed --encoder=runs/digits/encoder --output_dir=runs/embedded
  python -m urkle_tf.embed --encoder=runs/photos/encoder --dataset=folder:photos --image_size=64
    --output_dir=runs/photos-embedded
  tensorboard --logdir=runs/photos-embedded

The last command shows the embeddings with their images.
"""

from urkle_tf import command_line, errors, settings


def main():
  """The command line."""
  names = command_line.define(settings.Embed)

  def embed(**given):
    if not given["output_dir"]:
      raise errors.UserError("give --output_dir=FOLDER, where the embeddings go")
    embeddings = command_line.load("downstream.embeddings")  # starts TensorFlow: only now

    found = embeddings.represent(**given)
    images, size = found["loc"].shape
    where = f"{given['output_dir']}/embeddings.npz"
    print(f"embeddings: {where} ({images:,} images, {size} numbers each)")
    if given["projector_examples"]:
      print(f"to look at them: tensorboard --logdir={given['output_dir']}")

  command_line.run(embed, names)


if __name__ == "__main__":
  main()

"""The attack on a contrastive loss that RoCL and ACL share."""

import tensorflow as tf

from urkle_tf import distribution, errors
from urkle_tf.networks import batch_norm
from urkle_tf.networks.tuples import folded


def check(name, pretext):
  """Raises `UserError` unless `pretext` contrasts two views."""
  if not pretext.contrastive:
    raise errors.UserError(
      f"{name} needs a contrastive pretext, and {pretext.name} is not one: use --pretext=simclr or "
      "--robustness=urkle"
    )
  if pretext.views != 2:
    raise errors.UserError(
      f"{name} needs two views of each image, but {pretext.name} makes {pretext.views}: leave out "
      "the option that adds views, or use --robustness=urkle"
    )


def objective(encoder, pretext, views, attacked, streams=None):
  """The contrastive loss of each image's views, some of them attacked, to be maximised.

      l(x') = contrast(the views' embeddings, those of `attacked` taken from x'; negatives)

  in inference mode and at z = loc.  The negatives are the clean embeddings of all other images'
  views: constants, gathered from all replicas before the attack's loop.  That is our reading.  The
  published implementations take the negatives from the same batch of adversaries.  There, each
  image's attack changes the objective of all others, and the objective depends on the number of
  devices.  Here, the attacks are independent, and give the same result on any number of replicas.

  Args:
    encoder: the `GaussianEncoder`.
    pretext: a contrastive `Pretext`.
    views: float32 [n, v, h, w, c].
    attacked: positions of the views that are attacked, a of them.
    streams: the views' batch-norm streams; None if there is one.

  Returns:
    A function of images [n * a, h, w, c], the neighbours of the attacked views, to float32 [n * a].
    Each gets the value of its tuple, so the attacked views of an image move jointly.
  """
  streams = streams or (batch_norm.ADVERSARIAL,) * views.shape[1]
  embed = {stream: _embedding(encoder, pretext, stream) for stream in sorted(set(streams))}
  clean = batch_norm.by_stream(lambda images, stream: embed[stream](images), views, streams)
  clean = tf.stop_gradient(folded(clean, views.shape[1]))  # [n, v, d]
  others = distribution.gather(clean)
  untouched = [position for position in range(views.shape[1]) if position not in attacked]
  (stream,) = {streams[position] for position in attacked}

  def loss(neighbours):
    members = folded(embed[stream](neighbours), len(attacked))
    if untouched:
      members = tf.concat([tf.gather(clean, untouched, axis=1), members], axis=1)
    return tf.repeat(pretext.contrast(members, others), len(attacked))

  return loss


def _embedding(encoder, pretext, stream):
  represent, embed = encoder.frozen(stream), pretext.embedding(stream)
  return lambda images: embed(represent(images).loc)

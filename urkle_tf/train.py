"""Pre-trains a robust encoder without labels.

  python -m urkle_tf.train --flagfile=configs/cifar10.cfg
  python -m urkle_tf.train --dataset=folder:photos --image_size=64 --output_dir=runs/photos

The same command on the same --output_dir resumes the run.  SIGTERM and Ctrl-C end the step, write
a checkpoint, and exit with 143 and 130; a second one does not wait.
"""

from urkle_tf import command_line

_SHARED = {
  "output_dir": ...,
  **command_line.IMAGES,
  "encoder": "resnet18",
  "norm": ...,
  "epsilon": ...,
  "attack_steps": 5,
  "attack_step_size": ...,
  "batch_size": ...,
  "seed": ...,
  "precision": ...,
  "strategy": ...,
  "log_every": ...,
}
_OWN = {
  "pretext": (
    "str",
    "simclr",
    "what is learnt: simclr(temperature=0.5), byol, simsiam, barlow_twins, vicreg, "
    "distil(teacher=PATH), vae, ae or supervised",
  ),
  "robustness": (
    "str",
    "urkle",
    "none, urkle(k=8, positives=true, attacked=2), trades(beta=6), adversarial_training, rocl "
    "or acl(form=ds)",
  ),
  "augment": (
    "str",
    "simclr",
    "views: simclr(strength=1.0), augmix(base=simclr), randaugment, affine, crop or none; or a "
    "list with one for each view",
  ),
  "augment_on_device": ("bool", False, "augment inside the compiled step (accelerators)"),
  "attack": ("str", None, "pgd(start=1.0), rs_fgsm, fgsm or n_fgsm; default: pgd"),
  "attack_schedule": (
    "str",
    None,
    "of PGD's steps: rising(first=1) or controlled(every=300); default: constant",
  ),
  "attack_precision": ("str", None, "mixed_bfloat16: of the attack's passes alone"),
  "loc": (
    "str",
    None,
    "where mu lies: sphere, centred_sphere, pooled, dense or dense_sphere; default: sphere, or "
    "dense where z is decoded or classified",
  ),
  "latent_dim": ("int", None, "d_z, the dimension of z; default: the width of the features"),
  "min_scale": ("number", 0.1, "floor of sigma (in units of the spread of mu, off the sphere)"),
  "max_scale": ("number", 0.25, "cap of sigma, in the same units"),
  "optimizer": ("str", "sgd", "sgd(momentum=0.9), lars(momentum=0.9, trust=0.001) or adamw"),
  "learning_rate": ("number", 0.1, "its highest value; cosine to 0"),
  "epochs": ("int", None, "passes over the data; default: 100"),
  "minutes": ("number", None, "train so long by the clock, in place of --epochs"),
  "warmup_epochs": ("number", 0.0, "epochs of linear rise of the learning rate"),
  "warmup_minutes": ("number", None, "the same with --minutes"),
  "weight_decay": ("number", 1e-4, "decoupled; batch norms and biases left out"),
  "clip_norm": ("number", None, "largest global norm of the gradient"),
  "epsilon_warmup_epochs": ("number", 0.0, "epochs over which epsilon rises"),
  "epsilon_warmup_minutes": ("number", None, "the same with --minutes"),
  "beta_warmup_epochs": ("number", 0.0, "epochs over which the KL term's weight rises"),
  "beta_warmup_minutes": ("number", None, "the same with --minutes"),
  "ema": ("number", None, "decay a step of the average of weights that is exported: 0.99"),
  "steps_per_execution": ("int", None, "steps that an accelerator takes at once; default: 1"),
  "checkpoint_every": ("int", 500, "steps between checkpoints"),
  "max_bad_steps": ("int", 20, "stop after so many steps in a row whose loss is not finite"),
  "init_from": ("str", None, "start from the encoder of this finished run, or of preset:NAME"),
  "probe_split": ("str", None, "held-out labelled images for an online accuracy"),
  "probe_examples": ("int", 2000, "how many of them"),
  "data_service": ("str", None, "HOST:PORT,HOST:PORT of input workers (launch/input_worker.py)"),
  "dry_run": ("bool", False, "say what the training would cost, from a few steps; write nothing"),
}
_MAIN = {
  "dataset": "TFDS name, digits (bundled) or folder:PATH",
  "data_dir": "where prepared TFDS data lies",
  "image_size": "resize to squares of so many pixels",
  "output_dir": "the run's folder; the same command resumes it",
  "pretext": "simclr byol simsiam barlow_twins vicreg distil vae ae supervised",
  "robustness": "none urkle rocl acl trades adversarial_training",
  "augment": "simclr(strength=1) augmix randaugment affine crop",
  "encoder": "resnet18(width=64) convnet FILE.keras preset:NAME",
  "loc": "where mu lies: sphere pooled dense ...",
  "norm": "of the threat model: linf, l2 or l1",
  "epsilon": "its radius in pixel units of [0, 1]: 8/255",
  "attack_steps": "steps of the inner attack",
  "batch_size": "images a step, over all replicas",
  "epochs": "passes over the data; default: 100",
  "minutes": "train so long, in place of --epochs",
  "learning_rate": "its highest value",
}


def main():
  """The command line."""
  names = command_line.define(_SHARED, _OWN, _MAIN)

  def train(dry_run, **settings):
    if dry_run:
      forecast = command_line.load("forecast")
      found = forecast.forecast(**settings)
      print("\n".join(forecast.describe(found, settings["batch_size"])))
      return
    pretraining = command_line.load("pretraining")  # starts TensorFlow: only now

    result = pretraining.pretrain(**settings)
    for kind in ("encoder", "classifier"):
      if kind in result:
        print(f"{kind}: {result[kind]}")

  command_line.run(train, names)


if __name__ == "__main__":
  main()

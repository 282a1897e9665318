"""What each of `multi_worker_test`'s workers runs.

  python tests/workers.py JSON [flags of urkle_tf.train]

Pre-trains each of the list of settings in JSON, without exports and pictures; then, if there are
flags, continues as `urkle_tf.train`.
"""

import json
import sys


def main():
  """See above."""
  from urkle_tf import export, train
  from urkle_tf.training import pictures

  jobs = json.loads(sys.argv.pop(1))
  if jobs:
    from urkle_tf.training import pretraining

    kept = export.export_encoder, export.export_classifier, pictures.Pictures.draw
    export.export_encoder = export.export_classifier = lambda *args: None
    pictures.Pictures.draw = lambda *args: None
    for settings in jobs:
      pretraining.pretrain(**settings)
    export.export_encoder, export.export_classifier, pictures.Pictures.draw = kept
  if sys.argv[1:]:
    train.main()


if __name__ == "__main__":
  main()

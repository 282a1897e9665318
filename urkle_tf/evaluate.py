"""Measures a classifier: clean, attacked, corrupted, calibrated.

  python -m urkle_tf.evaluate --classifier=head/classifier --output_dir=report
  python -m urkle_tf.evaluate --classifier=runs/slf/classifier --output_dir=runs/strong
    --attacks="pgd(steps=100, restarts=2),fgsm" --epsilons=8/255,16/255 --standing
    --corruptions=all
  python -m urkle_tf.evaluate --encoder=runs/digits/encoder --output_dir=runs/encoder-report

The same command on the same --output_dir finishes what was begun there, or finds it finished.
"""

from urkle_tf import command_line, errors, tables

_SHARED = {
  "encoder": None,
  "output_dir": ...,
  **command_line.IMAGES,
  "split": "test",
  "norm": None,
  "epsilon": None,
  "attack_steps": 20,
  "attack_step_size": ...,
  "batch_size": 250,
  "seed": ...,
}
_OWN = {
  "classifier": (
    "str",
    None,
    "an exported classifier's folder, preset:NAME, a SavedModel's folder, or a .keras file",
  ),
  "regressor": ("str", None, "instead of a classifier an exported regressor's folder"),
  "attacks": (
    "str",
    "pgd,fgsm",
    "pgd(steps=100, restarts=2), fgsm, rs_fgsm, apgd_ce, apgd_dlr, apgd_t, fab_t, square, "
    "autoattack, autoattack(version=rand); commas in between",
  ),
  "epsilons": ("numbers", None, "several radii in pixel units: 8/255,16/255"),
  "restarts": ("int", 1, "runs of an attack from different starts"),
  "eot": ("int", None, "samples of z a step against the sampled classifier: 20; 50 for claims"),
  "noise": ("str", "fresh", "samples of z are fresh at every step, or fixed through an attack"),
  "samples": ("int", 200, "samples of z that the sampled classifier is scored with"),
  "standing": ("bool", False, "attack only images that earlier rows left standing: fast"),
  "checks": ("bool", True, "look for signs of masked gradients, on the first 200 images"),
  "corruptions": ("str", None, "all (15 types), names with commas in between, or tfds (prepared)"),
  "severities": ("numbers", None, "of the corruptions: 1,3,5; default all five"),
  "representation_examples": ("int", 1000, "images for the part without labels; 0 for none"),
  "loss_cap": ("number", None, "report the bound of Proposition 1 with this M, above ln(classes)"),
  "html": ("bool", False, "write report.html too: the report as one file for a browser"),
  "save_images": ("bool", False, "save adversarial images and per-image results"),
}
_MAIN = {
  "classifier": "exported folder, preset:NAME, SavedModel or .keras file",
  "encoder": "instead: an encoder, measured without labels",
  "regressor": "instead: an exported regressor",
  "output_dir": "where report.json and report.md go",
  "dataset": "TFDS name, digits or folder:PATH",
  "data_dir": "where prepared TFDS data lies",
  "image_size": "resize to squares of so many pixels",
  "split": "measure this split",
  "examples": "only so many images",
  "attacks": "pgd(steps=100) fgsm apgd_ce apgd_t fab_t square autoattack",
  "norm": "linf, l2 or l1; default that of the training",
  "epsilons": "radii in pixel units: 8/255,16/255",
  "eot": "samples of z a step: 20; 50 for claims",
  "corruptions": "all, or names of the 15 types",
  "loss_cap": "adds the bound of Proposition 1",
  "html": "write report.html too",
}


def main():
  """The command line."""
  names = command_line.define(_SHARED, _OWN, _MAIN)

  def evaluate(**settings):
    if not settings["output_dir"]:
      raise errors.UserError("give --output_dir=FOLDER: where the report is written")
    evaluation = command_line.load("evaluation")  # starts TensorFlow: only now

    result = evaluation.assess(**settings)
    if part := result.get("regression"):
      worst = part["attacks"][0]
      print(
        f"root mean square error: {part['clean']['rmse']:.4g} clean, {worst['rmse']:.4g} under "
        f"{worst['name']}, {tables.threat(worst, ', epsilon ')}"
      )
    if "clean" in result:
      print(f"clean accuracy: {100 * result['clean']['accuracy']:.2f}%")
    for row in result.get("attacks", ()):
      print(
        f"{row['name']}, {tables.threat(row, ', epsilon ')}, {row['mode']} z: "
        f"{100 * row['accuracy']:.2f}%"
      )
    if part := result.get("corruptions"):
      print(
        f"corrupted: {100 * part['mean']:.2f}%, mean of {len(part['types'])} types "
        f"(mean corruption error {100 * part['mean_corruption_error']:.2f}%)"
      )
    if part := result.get("checks"):
      failed = ", ".join(check["name"] for check in part if not check["passed"])
      print(f"checks: {f'FAILED: {failed}' if failed else 'all passed'}")
    if part := result.get("bound"):
      print(
        f"bound on the adversarial loss, M {part['M']:.4g}: {part['value']:.4g} (measured: "
        f"{part['measured_adversarial_loss']:.4g}{'; vacuous' if part['vacuous'] else ''})"
      )
    print(f"report: {settings['output_dir']}/report.{'html' if settings['html'] else 'md'}")

  command_line.run(evaluate, names)


if __name__ == "__main__":
  main()

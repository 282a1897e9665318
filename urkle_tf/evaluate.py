"""Measures a classifier: clean, attacked, corrupted, calibrated.

  python -m urkle_tf.evaluate --classifier=head/classifier --output_dir=report
  python -m urkle_tf.evaluate --classifier=runs/slf/classifier --output_dir=runs/strong
    --attacks="pgd(steps=100, restarts=2),fgsm" --epsilons=8/255,16/255 --standing
    --corruptions=all
  python -m urkle_tf.evaluate --encoder=runs/digits/encoder --output_dir=runs/encoder-report

The same command on the same --output_dir finishes what was begun there, or finds it finished.
"""

from urkle_tf import command_line, errors, settings
from urkle_tf.output import tables


def main():
  """The command line."""
  names = command_line.define(settings.Evaluate)

  def evaluate(**given):
    if not given["output_dir"]:
      raise errors.UserError("give --output_dir=FOLDER: where the report is written")
    evaluation = command_line.load("evaluation")  # starts TensorFlow: only now

    result = evaluation.assess(**given)
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
    print(f"report: {given['output_dir']}/report.{'html' if given['html'] else 'md'}")

  command_line.run(evaluate, names)


if __name__ == "__main__":
  main()

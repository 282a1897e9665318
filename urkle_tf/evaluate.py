"""Measures a classifier: clean, attacked, corrupted, calibrated.

  python -m urkle_tf.evaluate --classifier=runs/digits-slf/classifier --output_dir=runs/report
  python -m urkle_tf.evaluate --classifier=runs/digits-slf/classifier --output_dir=runs/strong
    --attacks="pgd(steps=100, restarts=2),fgsm" --epsilons=8/255,16/255 --standing
    --corruptions=all
  python -m urkle_tf.evaluate --encoder=runs/digits/encoder --output_dir=runs/encoder-report

The same command on the same --output_dir resumes the evaluation there, or reports that it is
finished.
"""

from urkle_tf import command_line, errors, settings
from urkle_tf.evaluation import measurements


def main():
  """The command line."""
  names = command_line.define(settings.Evaluate)

  def evaluate(**given):
    if not given["output_dir"]:
      raise errors.UserError("give --output_dir=FOLDER, where the report goes")
    # Reports mistakes in these without starting TensorFlow.
    measurements.named(given["measure"], given["certify"])
    result = command_line.load("evaluation.assess").assess(**given)
    for one, part in measurements.in_report(result):
      figures = one.glance(part, result)
      said = [f"{name}: {', '.join(filter(None, figure))}" for name, *figure in figures]
      for line in one.lines(part) or said:
        print(line)
    if left := result["config"].get("left_out"):
      print(f"left out, since the time of --minutes was up: {', '.join(left)}")
    print(f"report: {given['output_dir']}/report.{'html' if given['html'] else 'md'}")

  command_line.run(evaluate, names)


if __name__ == "__main__":
  main()

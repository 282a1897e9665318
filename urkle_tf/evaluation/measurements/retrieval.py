"""Measures which nearest neighbours an image keeps under attack, without labels."""

import dataclasses

from urkle_tf import errors
from urkle_tf.evaluation.measurements.base import Measurement, alias
from urkle_tf.evaluation.report.document import Heading, Table, Text
from urkle_tf.output import tables

_DISTANCES = ("squared", "cosine")
_ENCODERS = ("encoder", "foreign_encoder")


@dataclasses.dataclass(frozen=True)
class Retrieval(Measurement):
  """See `urkle_tf.evaluation.retrieval`.

  Args:
    neighbours: how many nearest images are compared.
    steps: of PGD on the distance between embeddings.
    restarts: of the attack.
    distance: what it maximises, `"squared"`, |f(x') - f(x)|^2, or `"cosine"`, 1 - cos.
    examples: how many images are measured, the first ones.
    reference: the split in which neighbours are searched; None for the measured images.
    original: for an encoder alone, the encoder that it was made from, to compare with.
  """

  neighbours: int = 10
  steps: int = 20
  restarts: int = 1
  distance: str = "squared"
  examples: int = 1000
  reference: str | None = None
  original: str | None = alias("against")

  kinds = ("classifier", *_ENCODERS)
  place = 55

  def wanted(self, kind, named):
    return named or kind == "foreign_encoder" or (kind == "encoder" and bool(self.original))

  def prepare(self, context):
    from urkle_tf.evaluation import retrieval

    errors.one_of("distance of retrieval", self.distance, _DISTANCES)
    errors.at_least(1, self.name, steps=self.steps, restarts=self.restarts)
    alone = self if context.kind in _ENCODERS else dataclasses.replace(self, original=None)
    return retrieval.prepare(context, alone)

  def glance(self, part, report):
    if "clean" in report:
      return []
    kept, threat = f"{part['overlap']:.1%}", tables.threat(part, ", epsilon ")
    return [(f"of {part['neighbours']} nearest images kept", kept, threat)]

  def render(self, part, report):
    before = part.get("original", {})
    named = {name: text.format(**part) for name, text in _MEANINGS.items()}
    rows = [
      [
        text,
        f"{part[name]:.4g}",
        *([f"{before[name]:.4g}" if name in before else "-"] * bool(before)),
      ]
      for name, text in named.items()
      if name in part
    ]
    content = [
      Heading("Retrieval"),
      Text(
        f"The first {part['examples']:,} images, nearest of {part['references']:,} by cosine. PGD "
        f"on the distance of the embedding ({part['distance']}) with {part['steps']} steps, "
        f"{tables.threat(part, ', epsilon ')}; no label is read."
      ),
    ]
    return [*content, Table("Retrieval", ["", "value", *["original"] * bool(before)], rows)]

  def lines(self, part):
    said = f"of the {part['neighbours']} nearest images, under attack: {part['overlap']:.1%} kept"
    if "original" in part:
      said += f" (the original {part['original']['overlap']:.1%})"
    return [said]


_MEANINGS = {
  "overlap": "of the {neighbours} nearest images, share kept under attack",
  "first_kept": "share of images whose nearest stays under attack",
  "moved": "squared distance that attacks move an embedding, over the spread",
  "cosine": "cosine of attacked and clean embedding",
  "drift": "drift: squared distance of clean embeddings to the original's, over its spread",
  "index": "of the {neighbours} nearest in an index of the original, share found by clean images",
  "index_attacked": "the same, found by attacked images",
}

"""From an exported encoder and labels to a predictor: the functions behind `finetune`."""

from urkle_tf.downstream.adapting import adapt, adapt_seeds
from urkle_tf.downstream.base import Protocol, Task

__all__ = ["Protocol", "Task", "adapt", "adapt_seeds"]

SHARED = ("adapting", "embeddings")  # modules that hold no protocol

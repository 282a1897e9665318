"""Warnings: each sign, its patience, and the flag that it names."""

import types

import pytest

from urkle_tf.training import alarms

HEALTHY = {"step": 1, "loss": 1.0, "kl": 2.0, "drift": 0.1, "effective_rank": 8.0}
HEALTHY |= {"snr": 3.0, "sigma_mean": 0.2, "attack_distance": 0.9, "zero_gradients": 0.001}
PROBED = HEALTHY | {"knn_accuracy": 0.9, "knn_robust_accuracy": 0.4}


def watch(rows=(), stochastic=True, dimensions=16):
  made = types.SimpleNamespace
  task, scheme = (made(stochastic=value) for value in (False, stochastic))
  encoder = made(latent_dim=dimensions)
  return alarms.Alarms(made(pretext=task, robustness=scheme, encoder=encoder), rows)


@pytest.mark.parametrize(
  "change, words, flag",
  [
    ({"effective_rank": 1.95}, "effective_rank is 1.95 of 16", "--beta_warmup_epochs"),
    ({"snr": 0.95, "sigma_mean": 1.9}, "sigma 1.90", "--max_scale"),
    ({"kl": 9e-4, "attack_distance": 0.49}, "do not move (0.49 of epsilon)", "--attack_step_size"),
    ({"kl": 9e-4, "attack_distance": 0.51}, "the encoder may carry no information", "--robustness"),
    ({"drift": 1.05}, "drift 1.05", "--learning_rate"),
    ({"zero_gradients": 0.52}, "52% of the attack's input gradients", "--precision"),
  ],
)
def test_each_sign_is_reported_once_after_three_rows(change, words, flag):
  looked, ill = watch(), HEALTHY | change
  assert [looked.look(row) for row in (HEALTHY, ill, ill)] == [[], [], []]
  (said,) = looked.look(ill)
  assert words in said
  assert flag in said
  assert "\n" not in said
  assert looked.look(ill) == []
  assert looked.standing == [said]
  # Once it was right, it is reported again.
  assert looked.look(HEALTHY) == looked.standing == []
  assert [looked.look(ill) for _ in range(3)] == [[], [], [said]]


def test_a_probe_that_falls_to_nothing():
  beaten = PROBED | {"knn_robust_accuracy": 0.0}
  looked = watch()
  assert looked.look(beaten) == []  # it has never been robust: nothing fell
  assert looked.look(PROBED) == []
  (said,) = looked.look(beaten)
  assert "robust accuracy fell to 0 (clean: 0.90)" in said
  assert "--attack_steps" in said


def test_rows_without_figures_neither_add_nor_end_a_sign():
  looked, ill = watch(), HEALTHY | {"effective_rank": 1.0}
  silent = dict.fromkeys(HEALTHY)  # all steps were skipped
  assert [looked.look(row) for row in (ill, silent, ill, silent)] == [[]] * 4
  assert len(looked.look(ill)) == 1


def test_what_an_earlier_process_said_is_not_said_again():
  ill = HEALTHY | {"effective_rank": 1.0}
  assert watch([ill] * 3).look(ill) == []
  assert len(watch([ill] * 2).look(ill)) == 1


def test_where_a_sign_means_nothing_it_is_silent():
  for looked, row in (
    (watch(stochastic=False), HEALTHY | {"snr": 0.1}),  # no term sees sigma
    (watch(), {"step": 1, "loss": 1.0, "effective_rank": 8.0, "snr": 3.0}),  # no adversaries
    (watch(dimensions=2), HEALTHY | {"effective_rank": 1.5}),  # 1.5 of 2 is no collapse
    (watch(), HEALTHY | {"effective_rank": 2.05, "snr": 1.05, "zero_gradients": 0.48}),
    (watch(), HEALTHY | {"kl": 1.1e-3, "attack_distance": 0.1, "drift": 0.95}),
  ):
    assert [looked.look(row) for _ in range(4)] == [[]] * 4

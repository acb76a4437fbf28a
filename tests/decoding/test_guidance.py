"""Classifier-free guidance as a denoiser that is led by two."""

import torch
from enumerated import Table, divergence
from enumerated_sampler import chain, denoiser_of
from torch import Tensor

from unmask.decoding.samplers import Ancestral
from unmask.decoding.sampling import Guided
from unmask.diffusion import SCHEDULES, Masked

LINEAR = SCHEDULES.parse("linear")


def test_guidance_tilts_one_token_exactly_and_two_approximately() -> None:
    weight, process = 2.5, Masked(3, 3, LINEAR)
    for length, is_exact in ((1, True), (2, False)):
        wanted, plain = Table.random(3, length, seed=3), Table.random(3, length, seed=4)
        tilted = wanted.chances**weight * plain.chances ** (1 - weight)
        truth = Table(3, length, tilted / tilted.sum())
        led = Guided(denoiser_of(wanted, process), denoiser_of(plain, process), weight)

        def predict(tokens: Tensor, time: Tensor, led: Guided = led) -> Tensor:
            return led(tokens, time.expand(len(tokens), 1))

        law = chain(Ancestral(), process, predict, length, Ancestral().moves(256, LINEAR))[-1]
        gap = divergence(truth, law, 4)
        if is_exact:
            assert abs(gap) < 1e-12
        else:
            assert (
                0.001 < gap < 1
            )  # guiding conditionals is not guiding the whole: no number of steps mends it


def test_guidance_of_weight_one_and_zero_and_of_banned_tokens() -> None:
    tokens, time = torch.zeros(1, 2, dtype=torch.int64), torch.ones(1, 1)
    first = torch.tensor([0.3, -torch.inf, 1.0]).expand(1, 2, 3)
    second = torch.tensor([0.1, -torch.inf, -torch.inf]).expand(1, 2, 3)

    def constant(logits: Tensor) -> Guided:
        return Guided(lambda *_: logits, lambda *_: logits, 1.0)

    for weight, wanted in ((1.0, first), (0.0, first), (3.0, first)):
        led = Guided(constant(first), constant(first), weight)
        torch.testing.assert_close(led(tokens, time).softmax(-1), wanted.softmax(-1))
    banned = Guided(constant(first), constant(second), 3.0)(tokens, time).softmax(-1)
    assert banned[0, 0].tolist() == [1, 0, 0]

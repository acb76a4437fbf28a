"""Guidance: a denoiser that is led by two, and what a request may ask of it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from enumerated import Table, divergence
from enumerated_sampler import chain, denoiser_of
from torch import Tensor

from command_line import Command
from unmask.decoding.generate import generate
from unmask.decoding.guidance import Guidance, Guided
from unmask.decoding.language_model import LanguageModel, load
from unmask.decoding.options import Options
from unmask.decoding.samplers import Ancestral
from unmask.diffusion import SCHEDULES, Masked
from unmask.model.conditioning import Conditioning

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


@pytest.mark.parametrize("weight", [0.5, 2.0])
def test_guidance_by_the_prompt_is_the_product_of_the_laws_with_and_without_it(weight: float) -> None:
    table, process = Table.random(3, 3, seed=5), Masked(3, 3, LINEAR)
    given = torch.tensor([[True, False, False]])
    noise = torch.full((1, 3), 3)
    led = Guidance(weight).lead(denoiser_of(table, process), given, noise, 1.0)
    joint = table.chances.view(3, 3, 3)
    for prompt, shown in ((0, 3), (2, 3), (1, 2)):  # the place in the middle open, or decided
        told = joint[prompt] if shown == 3 else joint[prompt, shown : shown + 1]
        untold = joint.sum(0) if shown == 3 else joint[:, shown].sum(0)[None]
        with_it, without = told.sum(0) / told.sum(), untold.sum(0) / untold.sum()
        truth = with_it ** (1 + weight) / without**weight
        found = led(torch.tensor([[prompt, shown, 3]]), torch.ones(1, 1), None).softmax(-1)
        torch.testing.assert_close(found[0, 2], truth / truth.sum())


def test_what_hides_the_prompt_is_noise_and_nothing_is_believed_of_it() -> None:
    generator = torch.Generator().manual_seed(0)
    given = torch.tensor([[True, False, True]])
    noisy, noise = (torch.randn(1, 3, 2, generator=generator) for _ in range(2))
    belief, seen = torch.ones(1, 3, 4), []

    def denoise(noisy: Tensor, gamma: Tensor, belief: Tensor | None = None, /) -> Tensor:
        seen.append((noisy, gamma, belief))
        return torch.zeros(1, 3, 4)

    Guidance(1.0).lead(denoise, given, noise, 5.0)(noisy, torch.tensor([[-6.0, 1.0, -6.0]]), belief)
    (told, levels, believed), (untold, other_levels, less_believed) = seen
    assert torch.equal(told, noisy)
    assert torch.equal(untold[0], torch.stack([noise[0, 0], noisy[0, 1], noise[0, 2]]))
    assert (levels.tolist(), other_levels.tolist()) == ([[-6, 1, -6]], [[5, 1, 5]])
    assert believed is belief
    assert less_believed is not None
    assert less_believed.sum(-1).tolist() == [[0, 4, 0]]


def test_guidance_by_itself_leans_on_the_belief() -> None:
    def denoise(noisy: Tensor, time: Tensor, belief: Tensor | None = None, /) -> Tensor:
        return torch.zeros(1, 1, 2) if belief is None else belief.log()

    belief = torch.tensor([[[0.2, 0.8]]], dtype=torch.float64)
    led = Guidance(1.0, "self").lead(
        denoise, torch.ones(1, 1, dtype=torch.bool), torch.zeros(1, 1, dtype=torch.int64), 1.0
    )
    truth = belief**2
    found = led(torch.zeros(1, 1, dtype=torch.int64), torch.ones(1, 1), belief).softmax(-1)
    torch.testing.assert_close(found, truth / truth.sum())


@pytest.fixture(scope="module")
def masked() -> LanguageModel:
    return load("tiny-masked")


@pytest.fixture(scope="module")
def continuous() -> LanguageModel:
    return load("tiny-continuous")


def test_a_larger_weight_moves_a_trained_law_towards_the_prompt(masked: LanguageModel) -> None:
    prompt = masked.encode("The captain of the ship", raw=True)
    blank = [masked.denoiser.mask_token_id or 0] * 12
    tokens = torch.tensor([[*prompt, *blank]])
    given = (torch.arange(tokens.shape[1]) < len(prompt))[None]
    whole, time = masked.denoiser.whole, torch.ones(1, 1, dtype=torch.float64)
    with_it = whole(tokens, time)[0, len(prompt) :].log_softmax(-1)
    without = whole(tokens.masked_fill(given, blank[0]), time)[0, len(prompt) :].log_softmax(-1)
    ratio = with_it - without

    def leaning(weight: float) -> Tensor:
        led = Guidance(weight).lead(whole, given, torch.full_like(tokens, blank[0]), 1.0)
        law = led(tokens, time)[0, len(prompt) :].softmax(-1)
        return (law * ratio).sum(-1).mean()

    plain = (with_it.exp() * ratio).sum(-1).mean()
    assert 0 < plain < leaning(0.5) < leaning(2.0) < leaning(5.0)
    assert leaning(2.0) > 1.5 * plain


@pytest.mark.parametrize("name", ["masked", "continuous"])
def test_guidance_costs_two_forwards_a_step_and_its_absence_nothing(
    name: str, request: pytest.FixtureRequest
) -> None:
    model: LanguageModel = request.getfixturevalue(name)
    plain, none, led = (
        model.generate(
            "The captain of the ship", max_tokens=12, num_steps=6, temperature=1.0, guidance=guidance
        )
        for guidance in (None, 0, 2.5)
    )
    assert (none.token_ids, none.num_forwards) == (plain.token_ids, plain.num_forwards)
    assert led.num_forwards == led.num_decode_forwards == 2 * plain.num_forwards
    assert led.token_ids != plain.token_ids
    assert max(led.decided_at) == led.num_forwards


def test_a_hole_is_led_by_what_stands_on_both_sides(masked: LanguageModel) -> None:
    plain, none, led = (
        masked.fill("He did not", "what to say.", length=4, temperature=1.0, guidance=guidance)
        for guidance in (None, "0", "4")
    )
    assert none.token_ids == plain.token_ids
    assert led.num_forwards == 2 * plain.num_forwards


def test_a_model_with_the_port_is_led_by_itself(continuous: LanguageModel) -> None:
    width = continuous.denoiser.transformer.config.hidden_size
    generator = torch.Generator().manual_seed(0)
    ports = Conditioning.initialise(width, generator, time=True, belief=True).requires_grad_(False)
    assert ports.belief is not None
    ports.belief.map.weight.normal_(generator=generator)
    denoiser = replace(continuous.denoiser, conditioning=ports)
    options = Options("diffusion", max_tokens=8, num_steps=4, block_length=8)
    prompt = continuous.encode("The whale", raw=True)
    found = [
        generate(denoiser, continuous.tokenizer, prompt, replace(options, guidance=guidance))
        for guidance in (None, Guidance(2.0, "self"), Guidance(2.0))
    ]
    assert [each.num_forwards for each in found] == [4, 8, 8]
    assert len({each.token_ids for each in found}) == 3


@pytest.mark.parametrize(
    ("name", "words", "said"),
    [
        ("tiny-ar", "--guidance 1", "only mode 'diffusion'"),
        ("tiny", "--mode diffusion --guidance 1", "reads its prompt from left to right"),
        ("tiny-masked", "--guidance self:1", "trained without self-conditioning"),
        ("tiny-continuous", "--guidance self:1", "trained without self-conditioning"),
        ("tiny-masked", "--guidance much", "is not a weight"),
        ("tiny-masked", "--guidance sefl:1", "choose from prompt, self"),
        ("tiny-masked", "--guidance -1", "must be above 0"),
        ("tiny-masked", "--guidance inf", "must be above 0 and finite"),
    ],
)
def test_guidance_that_cannot_be_is_refused_by_name(
    name: str, words: str, said: str, unmask_command: Command, tiny_model: Path
) -> None:
    model = tiny_model if name == "tiny" else name
    refused = unmask_command("generate", model, "The whale", "--max-tokens", "4", *words.split())
    assert (refused.status, refused.out) == (2, "")
    assert said in refused.err


def test_the_commands_write_what_python_writes(
    masked: LanguageModel, unmask_command: Command, tmp_path: Path
) -> None:
    (tmp_path / "text").write_text("He did not<hole>what to say.", encoding="utf-8")
    filled = unmask_command(
        *("fill", tmp_path / "text", "--model", "tiny-masked", "--length", "3", "--guidance", "2", "--json")
    )
    again = masked.fill("He did not", "what to say.", length=3, guidance=2)
    assert json.loads(filled.out)["token_ids"] == list(again.token_ids)
    written = unmask_command(
        *("generate", "tiny-masked", "The whale", "--max-tokens", "6", "--guidance", "prompt:2", "--json")
    )
    assert json.loads(written.out)["token_ids"] == list(
        masked.generate("The whale", max_tokens=6, guidance="2").token_ids
    )

"""The output law of speculation equals the verifier's law, by sums over every outcome."""

import functools
import itertools
from collections import Counter
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from random_denoisers import letter_tokenizer
from unmask.decoding.candidates import sampling_law
from unmask.decoding.constraint import Constraint
from unmask.decoding.options import Options
from unmask.decoding.speculation import accept, acceptance, residual
from unmask.decoding.text_law import TextLaw
from unmask.model.denoiser import Denoiser

REGEX = Constraint("regex", "a(a|bb)*")

Law = dict[tuple[int, ...], float]
Conditional = Callable[[tuple[int, ...]], Tensor]
"""The law of the token after a prefix: (V,) float64."""


def sequence_law(next_law: Conditional, vocab_size: int, length: int) -> Law:
    """Return the law of `length` tokens, by the chain rule."""
    law: Law = {(): 1.0}
    for _ in range(length):
        law = {
            (*prefix, token): mass * float(next_law(prefix)[token])
            for prefix, mass in law.items()
            for token in range(vocab_size)
        }
    return law


def cells(edges: list[float]) -> list[tuple[float, float]]:
    """Return (midpoint, width) of the cells of [0, 1) between the sorted edges."""
    bounds = [0.0, *sorted(edges), 1.0]
    return [((low + high) / 2, high - low) for low, high in itertools.pairwise(bounds) if high > low]


def cycle_law(offer: Conditional, next_law: Conditional, vocab_size: int, length: int) -> Law:
    """Return the law of what one call of `accept` emits on drafts from `offer`, by integrating its noise exactly.

    Its outcome is constant on boxes of the noise, whose edges are the acceptance probabilities and the
    distribution function of the next token; so its midpoints, weighted by volume, give the integral.
    """
    total: Counter[tuple[int, ...]] = Counter()
    for drafts in itertools.product(range(vocab_size), repeat=length):
        draft_law = torch.stack([offer(drafts[:count]) for count in range(length)])
        offered = float(draft_law[torch.arange(length), torch.tensor(drafts)].prod())
        if not offered:
            continue
        rows = torch.stack([next_law(drafts[:count]) for count in range(length + 1)])
        chances = acceptance(torch.tensor(drafts), draft_law, rows)
        for box in itertools.product(*(cells([chance]) for chance in chances.tolist())):
            noise = torch.tensor([middle for middle, _ in box], dtype=torch.float64)
            volume = float(torch.tensor([width for _, width in box], dtype=torch.float64).prod())
            count = next(
                (i for i, (u, chance) in enumerate(zip(noise, chances, strict=True)) if u >= chance), length
            )
            final = rows[count] if count == length else residual(rows[count], draft_law[count])
            for middle, width in cells(final.cumsum(0)[:-1].clamp(max=1.0).tolist()):
                next_noise = torch.full((length + 1,), middle, dtype=torch.float64)
                verdict = accept(torch.tensor(drafts), draft_law, rows, noise, next_noise)
                total[(*drafts[: verdict.num_accepted], verdict.next_token)] += offered * volume * width
    return total


def completed(cycle: Law, next_law: Conditional, vocab_size: int, length: int) -> Law:
    """Return the law of `length` tokens when the verifier itself goes on after a cycle's tokens."""
    total: Counter[tuple[int, ...]] = Counter()
    for emitted, mass in cycle.items():
        rest = sequence_law(
            lambda more, emitted=emitted: next_law((*emitted, *more)), vocab_size, length - len(emitted)
        )
        for more, share in rest.items():
            total[(*emitted, *more)] += mass * share
    return total


def largest_gap(one: Law, other: Law) -> float:
    return max(abs(one.get(key, 0.0) - other.get(key, 0.0)) for key in {*one, *other})


def random_laws(seed: int, vocab_size: int, length: int) -> tuple[Tensor, Conditional]:
    """Return a draft law (B, V) with a zero in it, and a verifier's conditional law."""
    generator = torch.Generator().manual_seed(seed)

    def law(*shape: int) -> Tensor:
        return (torch.randn(*shape, generator=generator, dtype=torch.float64) * 2).softmax(-1)

    draft_law = law(length, vocab_size)
    draft_law[length // 2, 0] = 0.0
    draft_law /= draft_law.sum(-1, keepdim=True)
    prefixes = [p for n in range(length + 1) for p in itertools.product(range(vocab_size), repeat=n)]
    table = {prefix: law(vocab_size) for prefix in prefixes}
    return draft_law, table.__getitem__


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("vocab_size", "length"), [(2, 1), (3, 2), (3, 3)])
def test_exact_law_on_random_tables(seed: int, vocab_size: int, length: int) -> None:
    draft_law, next_law = random_laws(seed, vocab_size, length)
    cycle = cycle_law(lambda prefix: draft_law[len(prefix)], next_law, vocab_size, length)
    found = completed(cycle, next_law, vocab_size, length + 1)
    assert largest_gap(found, sequence_law(next_law, vocab_size, length + 1)) < 1e-12


def test_the_enumeration_finds_a_wrong_rule() -> None:
    draft_law, next_law = random_laws(0, 3, 2)
    swapped = cycle_law(lambda prefix: draft_law[len(prefix)], lambda prefix: next_law(prefix).roll(1), 3, 2)
    wrong = completed(swapped, next_law, 3, 3)
    assert largest_gap(wrong, sequence_law(next_law, 3, 3)) > 0.01


@pytest.mark.parametrize("logit_shift", [True, False])
@pytest.mark.parametrize(
    "options",
    [
        Options(temperature=1.0),
        Options(temperature=0.7, top_k=3),
        Options(temperature=1.5, top_p=0.8),
        Options(temperature=1.2, min_p=0.2, logit_bias=((2, 1.5),)),
        Options(temperature=1.0, presence_penalty=0.8, frequency_penalty=0.5, top_k=3),
        Options(frequency_penalty=1.0),
        Options(temperature=1.0, top_k=3, constraint=REGEX, stop_token_ids=(0,)),
        Options(presence_penalty=2.0, constraint=REGEX, stop_token_ids=(0,)),
        Options(),
    ],
    ids=[
        "plain",
        "top-k",
        "top-p",
        "min-p",
        "penalties",
        "greedy-penalties",
        "constraint",
        "greedy-constraint",
        "greedy",
    ],
)
def test_exact_law_on_a_tiny_transformer(
    make_denoiser: Callable[..., Denoiser], logit_shift: bool, options: Options
) -> None:
    """Enumerate drafts of three tokens of four with the real canvas and the real causal stream."""
    vocab_size, length = 4, 3
    model = make_denoiser(vocab_size=vocab_size, logit_shift=logit_shift, num_layers=1, sharpness=2.0)
    cache, seed = model.new_cache(8), 2
    draft = model.draft([seed], torch.full((length,), vocab_size), 0, cache)
    text_law, proposed = TextLaw.of(options, [seed], letter_tokenizer()), draft.proposed(length)
    logits: dict[tuple[int, ...], Tensor] = {(): draft.next_logits}
    for prefix in (p for n in range(1, length + 1) for p in itertools.product(range(vocab_size), repeat=n)):
        logits[prefix] = model.causal(torch.tensor(prefix), 1, cache, num_heads=1)[0]

    def law_after(rows: list[Tensor], prefix: tuple[int, ...]) -> Tensor:
        if options.constraint and not is_grammatical(seed, prefix):
            return torch.zeros(vocab_size, dtype=torch.float64)
        return text_law.laws(torch.stack(rows), prefix)[-1]

    @functools.cache
    def verifier(prefix: tuple[int, ...]) -> Tensor:
        return law_after([logits[prefix[:count]] for count in range(len(prefix) + 1)], prefix)

    @functools.cache
    def offer(prefix: tuple[int, ...]) -> Tensor:
        return law_after(list(proposed[: len(prefix) + 1]), prefix)

    def autoregressive(prefix: tuple[int, ...]) -> Tensor:
        if options.constraint and 0 in prefix:  # behind the end, where anything goes
            return sampling_law(logits[prefix], options)
        penalised = logits[prefix].clone()
        for token in {seed, *prefix}:
            times = [seed, *prefix].count(token)
            penalised[token] -= options.presence_penalty + options.frequency_penalty * times
        if options.constraint:
            possible = [token in continuations((seed, *prefix)) for token in range(vocab_size)]
            penalised[~torch.tensor(possible)] = -torch.inf
        return sampling_law(penalised, options)

    reference = model.causal(torch.tensor([seed]), 0, model.new_cache(8), num_heads=1)
    torch.testing.assert_close(draft.next_logits, reference[0], atol=1e-5, rtol=1e-5)
    # The first draft comes from the verifier's own law, and is always accepted.
    assert torch.equal(offer(()), verifier(()))
    cycle = cycle_law(offer, verifier, vocab_size, length)
    found = completed(cycle, verifier, vocab_size, length + 1)
    assert largest_gap(found, sequence_law(autoregressive, vocab_size, length + 1)) < 1e-6
    drawn, laws = text_law.draw(proposed, torch.tensor([0.3, 0.6, 0.9], dtype=torch.float64))
    tokens = tuple(drawn.tolist())
    assert all(torch.equal(laws[place], offer(tokens[:place])) for place in range(length))


def continuations(text: tuple[int, ...]) -> set[int]:
    """Return what of <eos>, <bos>, a and b may follow a text that `REGEX` may begin with."""
    assert REGEX.text == "a(a|bb)*"
    num_last_bs = next((i for i, token in enumerate(reversed(text)) if token != 3), len(text))
    return {3} if num_last_bs % 2 else {0, 2, 3}


def is_grammatical(seed: int, prefix: tuple[int, ...]) -> bool:
    end = prefix.index(0) + 1 if 0 in prefix else len(prefix)
    return all(prefix[place] in continuations((seed, *prefix[:place])) for place in range(end))


def test_greedy_is_the_longest_run_of_agreement() -> None:
    def one_hot(*tokens: int) -> Tensor:
        return torch.nn.functional.one_hot(torch.tensor(tokens), 5).double()

    top = torch.full((3,), 1 - 2**-53, dtype=torch.float64)
    for drafts, wanted, count in [
        ((1, 2, 3), (1, 2, 3, 4), 3),
        ((1, 2, 3), (1, 0, 3, 4), 1),
        ((1,) * 3, (0,) * 4, 0),
    ]:
        for noise in (top, torch.zeros_like(top)):
            next_noise = torch.cat([noise, noise[:1]])
            verdict = accept(torch.tensor(drafts), one_hot(*drafts), one_hot(*wanted), noise, next_noise)
            assert (verdict.num_accepted, verdict.next_token) == (count, wanted[count])


def test_no_drafts_is_an_autoregressive_step() -> None:
    none = torch.empty(0, dtype=torch.long)
    law = torch.tensor([[0.25, 0.75]], dtype=torch.float64)
    for noise, token in ((0.2, 0), (0.3, 1)):
        uniform = torch.tensor([noise], dtype=torch.float64)
        verdict = accept(none, law[:0], law, uniform[:0], uniform)
        assert (verdict.num_accepted, verdict.next_token) == (0, token)


def test_residual_of_equal_laws_is_the_law() -> None:
    law = torch.tensor([0.5, 0.5], dtype=torch.float64)
    assert torch.equal(residual(law, law), law)


def test_acceptance_is_as_high_as_theory_allows() -> None:
    """The chance that a draft is accepted is one minus the total variation distance."""
    draft_law, next_law = random_laws(5, 3, 1)
    wanted = next_law(())
    chances = torch.stack([acceptance(torch.tensor([t]), draft_law, wanted[None])[0] for t in range(3)])
    distance = (draft_law[0] - wanted).abs().sum() / 2
    torch.testing.assert_close((draft_law[0] * chances.nan_to_num()).sum(), 1 - distance)

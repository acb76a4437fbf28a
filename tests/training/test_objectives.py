"""Training forwards: who sees whom, what is scored, and that serving computes the same."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from tiny_models import CONFIG, random_transformer
from torch import Tensor

from unmask.diffusion.process import PROCESSES, build_process
from unmask.diffusion.schedule import SCHEDULES
from unmask.diffusion.times import ExactCount, LowDiscrepancy, TimeSampling
from unmask.errors import UsageError
from unmask.model.conditioning import Conditioning
from unmask.model.denoiser import Denoiser
from unmask.training.batches import Batch, Span
from unmask.training.objectives import DIFFUSION, NEXT_TOKEN, NoiseConfig, Objective
from unmask.training.streams import Cuts, Streams, causal_stream, noisy_stream, two_streams

MASK = CONFIG.vocab_size - 1
BOUNDS = [0, 9, 10, 21]
"""Three pieces, the second of which is nothing but its given token."""
PLAIN = Batch(torch.zeros(BOUNDS[-1], dtype=torch.int64), tuple(BOUNDS))


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(MASK, (BOUNDS[-1],), generator=torch.Generator().manual_seed(5))


def denoiser(conditioning: Conditioning | None = None) -> Denoiser:
    return Denoiser(random_transformer(), mask_token_id=MASK, logit_shift=False, conditioning=conditioning)


def noise(process: str = "masked", cuts: Cuts | None = None, belief_share: float = 0.0) -> NoiseConfig:
    built = build_process(process, MASK, MASK, SCHEDULES.parse("linear"))
    return NoiseConfig(built, cuts, belief_share=belief_share)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(11)


def places(streams: Streams) -> dict[int, tuple[str, int]]:
    """Packed place -> which stream, and which batch token."""
    clean = {int(place): ("clean", index) for index, place in enumerate(streams.clean)}
    noisy = zip(streams.noisy.tolist(), streams.source.tolist(), strict=True)
    return clean | {place: ("noisy", source) for place, source in noisy}


@pytest.mark.parametrize("block_length", [1, 3, 4, 100, None])
def test_a_noisy_token_sees_its_block_and_the_clean_text_before_it(block_length: int | None) -> None:
    streams = two_streams(PLAIN, Cuts(() if block_length is None else (block_length,)), generator())
    what = places(streams)
    assert sorted(what) == list(range(streams.layout.num_tokens))
    block = block_length or 1000

    def expected(query: int, key: int) -> bool:
        (stream, q), (other, k) = what[query], what[key]
        begin = max(bound for bound in BOUNDS if bound <= q)
        if not begin <= k < next(bound for bound in BOUNDS if bound > q):
            return False
        if stream == "clean":
            return other == "clean" and k <= q
        first = begin + 1 + (q - begin - 1) // block * block
        return k < first if other == "clean" else first <= k < first + block

    for query in what:
        for key in what:
            assert streams.layout.visible(query, key) == expected(query, key), (what[query], what[key])


def test_streams_number_their_blocks_and_keep_positions() -> None:
    streams = two_streams(PLAIN, Cuts((4,)), generator())
    assert streams.group.tolist() == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4 + [4] * 2
    assert streams.num_groups == 5
    starts = torch.tensor([0] * 9 + [9] + [10] * 11)
    position = torch.from_numpy(streams.layout.positions)
    assert torch.equal(position[streams.noisy], streams.source - starts[streams.source])
    assert torch.equal(position[streams.clean], torch.arange(21) - starts)
    whole = noisy_stream(BOUNDS)
    assert (whole.num_groups, len(whole.clean), whole.source.tolist()) == (3, 0, list(range(21)))
    assert causal_stream(BOUNDS).layout.segments[2].length == 11


@pytest.mark.parametrize("process", PROCESSES.names())
@pytest.mark.parametrize(
    ("cuts", "next_token"),
    [(None, False), (Cuts(), True), (Cuts((4,)), False), (Cuts((2, 5), random_phase=True), True)],
)
def test_every_token_but_the_given_ones_counts_once(
    tokens: Tensor, process: str, cuts: Cuts | None, next_token: bool
) -> None:
    objective = Objective(denoiser(), next_token, noise(process, cuts))
    losses = objective(Batch(tokens, tuple(BOUNDS)), generator())
    assert set(losses) == ({DIFFUSION, NEXT_TOKEN} if next_token else {DIFFUSION})
    for loss in losses.values():
        assert loss.num_tokens == 18
        assert torch.isfinite(loss.total)
        assert loss.total > 0


@pytest.mark.parametrize("cuts", [None, Cuts((4,))])
def test_a_prompt_is_neither_noised_nor_scored(tokens: Tensor, cuts: Cuts | None) -> None:
    prompt = torch.zeros(len(tokens), dtype=torch.bool)
    prompt[[1, 2, 3, 4, 5, 12]] = True
    batch = Batch(tokens, tuple(BOUNDS), prompt)
    model = denoiser()
    seen: list[Tensor] = []

    class Watched(Denoiser):
        def embed_noisy(self, tokens: Tensor, time: Tensor, belief: Tensor | None = None) -> Tensor:
            seen.append(tokens)
            return super().embed_noisy(tokens, time, belief)

    watched = Watched(model.transformer, mask_token_id=MASK, logit_shift=False)
    with torch.no_grad():
        losses = Objective(watched, cuts is not None, noise(cuts=cuts))(batch, generator())
    assert {loss.num_tokens for loss in losses.values()} == {12}
    streams = noisy_stream(BOUNDS) if cuts is None else two_streams(batch, cuts, generator())
    kept = batch.given[streams.source]
    assert torch.equal(seen[0][kept], tokens[streams.source][kept])
    assert (seen[0] == MASK).any()


def test_blocks_lie_within_answers_and_end_tokens_fill_the_last(tokens: Tensor) -> None:
    """Two turns of 3 and 5 tokens, of which the second is cut off, and a text that ends without a prompt."""
    end = 7
    tokens = tokens.clone().clamp(min=8)
    prompt = torch.zeros(len(tokens), dtype=torch.bool)
    prompt[[0, 1, 2, 3, 7, 8, 9, 10]] = True
    tokens[[6, 20]] = end
    batch = Batch(tokens, (0, 16, 21), prompt)
    assert batch.spans == (Span(4, 7, True), Span(11, 16, True), Span(17, 21, False))
    streams = two_streams(batch, Cuts((4,)), generator(), end_token_id=end)
    sources = [streams.source[streams.group == group].tolist() for group in range(streams.num_groups)]
    assert sources == [[4, 5, 6, 6], [11, 12, 13, 14], [15], [17, 18, 19, 20]]
    positions = torch.from_numpy(streams.layout.positions)[streams.noisy]
    assert positions[streams.group == 0].tolist() == [4, 5, 6, 7]
    what = places(streams)
    query = int(streams.noisy[streams.group == 1][0])
    seen = {what[key][1] for key in what if streams.layout.visible(query, key)}
    assert seen == set(range(15))  # its own block, and all before its answer

    config = replace(noise(cuts=Cuts((4,))), end_token_id=end, weighting="cross_entropy", times=ExactCount())
    with torch.no_grad():
        losses = Objective(denoiser(), True, config)(batch, generator())
    assert {loss.num_tokens for loss in losses.values()} == {3 + 5 + 4}


def test_the_fill_is_learnt() -> None:
    """Only the token that fills the block can have a gradient where all else is given."""
    tokens = torch.tensor([9, 9, 7])
    batch = Batch(tokens, (0, 3), torch.tensor([True, True, False]))
    config = replace(noise(cuts=Cuts((4,))), end_token_id=7, times=ExactCount())
    objective = Objective(denoiser(), False, config)
    noised = objective._corrupt(batch, objective._streams(batch, generator()), config, generator())
    assert (len(noised.tokens), bool(noised.trained.all())) == (4, True)
    with torch.no_grad():
        filled = objective(batch, generator())[DIFFUSION]
        bare = Objective(denoiser(), False, replace(config, end_token_id=None))(batch, generator())[DIFFUSION]
    assert filled.num_tokens == bare.num_tokens == 1
    assert filled.total > bare.total


@pytest.mark.parametrize("times", [LowDiscrepancy(), ExactCount()])
@pytest.mark.parametrize("cuts", [None, Cuts((4,), random_phase=True)])
def test_complementary_copies_mask_every_token_once(
    tokens: Tensor, cuts: Cuts | None, times: TimeSampling
) -> None:
    config = replace(noise(cuts=cuts), complementary=True, times=times, weighting="cross_entropy")
    objective = Objective(denoiser(), False, config)
    batch = Batch(tokens, tuple(BOUNDS))
    streams = objective._streams(batch, generator())
    noised = objective._corrupt(batch, streams, config, generator())
    times_masked = torch.zeros(len(tokens), dtype=torch.int64)
    times_masked.index_add_(0, streams.source, (noised.tokens == MASK).long())
    assert torch.equal(times_masked, (~batch.given).long())
    with torch.no_grad():
        loss = objective(batch, generator())[DIFFUSION]
    assert loss.num_tokens == batch.num_scored
    assert torch.isfinite(loss.total)


@torch.no_grad()
def test_the_complementary_bound_is_the_bound(tokens: Tensor) -> None:
    """Means over many draws of the noise agree."""
    batch = Batch(tokens[:9], (0, 9))

    def mean(*, complementary: bool) -> tuple[float, float]:
        objective = Objective(
            denoiser(),
            False,
            replace(noise(cuts=Cuts((4,))), complementary=complementary, times=ExactCount()),
        )
        source = generator()
        draws = [objective(batch, source)[DIFFUSION] for _ in range(600)]
        values = torch.tensor([float(loss.total) / loss.num_tokens for loss in draws])
        return float(values.mean()), float(values.std() / len(values) ** 0.5)

    (plain, error), (paired, other) = mean(complementary=False), mean(complementary=True)
    assert abs(plain - paired) < 4 * (error + other)


def test_complementary_noise_needs_masks() -> None:
    with pytest.raises(UsageError, match="no masks to complement"):
        replace(noise("uniform"), complementary=True)


def test_no_gradient_leaks(tokens: Tensor) -> None:
    """AR logits know no noise and no later token; a noisy block knows no clean token of its own or after it."""
    model = denoiser()
    streams = two_streams(Batch(tokens[:13], (0, 13)), Cuts((4,)), generator())
    generator_ = generator()
    inputs = torch.randn(
        streams.layout.num_tokens, CONFIG.hidden_size, generator=generator_, requires_grad=True
    )
    logits = model.transformer.logits(model.transformer(inputs, streams.layout))

    def heard(row: int) -> Tensor:
        """Which packed tokens the logits of one row depend on."""
        (gradient,) = torch.autograd.grad(logits[row].sum(), inputs, retain_graph=True)
        return gradient.abs().sum(-1) > 0

    for index, row in enumerate(streams.clean.tolist()):
        mask = heard(row)
        assert not mask[streams.noisy].any()
        assert mask[streams.clean].tolist() == [other <= index for other in range(13)]
    for source, group, row in zip(
        streams.source.tolist(), streams.group.tolist(), streams.noisy.tolist(), strict=True
    ):
        mask, first = heard(row), 1 + (source - 1) // 4 * 4
        assert mask[streams.clean].tolist() == [other < first for other in range(13)]
        assert torch.equal(mask[streams.noisy], streams.group == group)


@torch.no_grad()
def test_training_logits_are_serving_logits(tokens: Tensor) -> None:
    model, block = denoiser(), 4
    tokens = tokens[:13]
    noisy = tokens.clone()
    noisy[[2, 3, 6, 9, 10, 11, 12]] = MASK
    streams = two_streams(Batch(tokens, (0, 13)), Cuts((block,)), generator())
    packed = torch.cat([tokens, noisy[streams.source]])[torch.cat([streams.clean, streams.noisy]).argsort()]
    trained = model.head(model.transformer(model.embed(packed), streams.layout))
    cache = model.new_cache(16)
    for first in range(1, 13, block):
        stored = cache.lengths[0]
        draft = model.draft(tokens[stored:first].tolist(), noisy[first : first + block], stored, cache)
        torch.testing.assert_close(
            draft.logits, trained[streams.noisy[streams.source >= first][:block]], rtol=0, atol=1e-5
        )
        torch.testing.assert_close(draft.next_logits, trained[streams.clean[first - 1]], rtol=0, atol=1e-5)


@torch.no_grad()
def test_blocks_of_one_cost_what_a_mask_after_the_clean_text_says(tokens: Tensor) -> None:
    """With one token per block and exact counts there is nothing random left."""
    model = denoiser()
    config = replace(noise(cuts=Cuts((1,))), times=ExactCount())
    loss = Objective(model, False, config)(Batch(tokens, tuple(BOUNDS)), generator())[DIFFUSION]
    total = 0.0
    for begin, end in pairwise(BOUNDS):
        for place in range(begin + 1, end):
            piece = tokens[begin:place].tolist()
            draft = model.draft(piece, torch.tensor([MASK]), 0, model.new_cache(16))
            total -= float(draft.logits[0, :MASK].log_softmax(-1)[tokens[place]])
    assert float(loss.total) == pytest.approx(total, rel=1e-5)


@torch.no_grad()
def test_the_joint_next_token_loss_is_the_autoregressive_one(tokens: Tensor) -> None:
    alone = Objective(denoiser(), True, None)(Batch(tokens, tuple(BOUNDS)), generator())[NEXT_TOKEN]
    joint = Objective(denoiser(), True, noise(cuts=Cuts((4,))))(Batch(tokens, tuple(BOUNDS)), generator())[
        NEXT_TOKEN
    ]
    assert float(joint.total) == pytest.approx(float(alone.total), rel=1e-5)
    assert alone.num_tokens == joint.num_tokens == 18


@torch.no_grad()
@pytest.mark.parametrize("cuts", [None, Cuts((4,))])
def test_the_belief_is_the_first_prediction(tokens: Tensor, cuts: Cuts | None) -> None:
    ports = Conditioning(CONFIG.hidden_size, time=False, belief=True)
    for parameter in ports.parameters():
        parameter.normal_(0.0, 0.3, generator=generator())

    def loss(model: Denoiser, share: float) -> float:
        objective = Objective(model, False, noise("uniform", cuts, belief_share=share))
        return float(objective(Batch(tokens, tuple(BOUNDS)), generator())[DIFFUSION].total)

    deaf = Conditioning(CONFIG.hidden_size, time=False, belief=True)
    assert loss(denoiser(ports), 0.0) == pytest.approx(loss(denoiser(deaf), 1.0), rel=1e-5)
    assert loss(denoiser(ports), 1.0) != pytest.approx(loss(denoiser(ports), 0.0), rel=1e-3)


def test_cuts_of_random_length_and_phase_tile_every_piece() -> None:
    cuts, source = Cuts((2, 5), random_phase=True), generator()
    seen: set[int] = set()
    for _ in range(200):
        bounds = cuts.bounds(19, source)
        sizes = [end - start for start, end in pairwise(bounds)]
        assert (bounds[0], bounds[-1]) == (0, 19)
        assert len(set(sizes[1:-1])) == 1
        assert sizes[1] in cuts.lengths
        assert all(1 <= size <= sizes[1] for size in (sizes[0], sizes[-1]))
        seen.add(bounds[1])
    assert seen == {1, 2, 3, 4, 5}
    assert Cuts().bounds(19, source) == Cuts().bounds(19, source, whole=True) == [0, 19]
    assert cuts.bounds(1, source) == [0, 1]
    assert Cuts((4,)).bounds(6, source, whole=True) == [0, 4, 8]
    assert Cuts((4,)).bounds(8, source, whole=True) == [0, 4, 8]
    assert Cuts((4,)).bounds(3, source, whole=True) == [0, 4]


def test_an_objective_without_a_loss_is_refused() -> None:
    with pytest.raises(ValueError, match="next tokens, denoising, or both"):
        Objective(denoiser(), False, None)
    with pytest.raises(ValueError, match="next tokens need a clean stream"):
        Objective(denoiser(), True, noise())

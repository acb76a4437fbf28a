"""One backbone for training and for serving: every way to lay out the same tokens gives the same states."""

import math

import pytest
import torch
from torch import Tensor

from unmask.config import AdapterConfig, RopeConfig, TransformerConfig
from unmask.layout import Layout, Segment, causal_layout
from unmask.model.adapter import Adapter
from unmask.model.cache import KVCache
from unmask.model.denoiser import Canvas, Denoiser
from unmask.model.transformer import Transformer

CONFIG = TransformerConfig(
    vocab_size=50,
    hidden_size=32,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_size=8,
    intermediate_size=64,
    max_positions=128,
    tie_embeddings=True,
    rope=RopeConfig(theta=100.0),
)
MASK = CONFIG.vocab_size
LENGTH = 24


@pytest.fixture
def denoiser() -> Denoiser:
    torch.manual_seed(0)
    transformer = Transformer(CONFIG).requires_grad_(False)
    transformer.embed.weight *= 0.2
    adapter = Adapter.initialise(CONFIG, AdapterConfig(rank=4), transformer.embed.weight, torch.Generator())
    for parameter in adapter.parameters():
        parameter.data.normal_(0, 0.2)
    return Denoiser(transformer, adapter, MASK, logit_shift=True)


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(0, CONFIG.vocab_size, (LENGTH,), generator=torch.Generator().manual_seed(1))


def cached(denoiser: Denoiser, tokens: Tensor) -> KVCache:
    """The cache of one causal forward; NaN wherever it has written nothing, so that nobody may read there."""
    cache = denoiser.new_cache(64)
    for whole in (cache.keys, cache.values):
        whole.fill_(math.nan)
    denoiser.causal(tokens, 0, cache)
    return cache


def close(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def test_prefill_chunks_and_single_steps_give_the_states_of_one_causal_forward(
    denoiser: Denoiser, tokens: Tensor
) -> None:
    model, cache = denoiser.transformer, denoiser.new_cache(LENGTH, num_rows=2)
    whole = model(tokens, causal_layout(LENGTH))
    spans = [(0, 7), (7, 8), (8, 9), (9, LENGTH)]
    parts = [model(tokens[a:b], causal_layout(b - a, start=a, row=1), cache) for a, b in spans]
    close(torch.cat(parts), whole)
    assert cache.lengths == [0, LENGTH]


def test_rows_of_a_batch_do_not_depend_on_each_other(denoiser: Denoiser, tokens: Tensor) -> None:
    model = denoiser.transformer
    rows = [tokens[:5], tokens[5:10], tokens[10:17]]
    layout = Layout([Segment(0, len(row)) for row in rows])
    together = model(torch.cat(rows), layout)
    close(together, torch.cat([model(row, causal_layout(len(row))) for row in rows]))
    # One token each on neighbouring cache rows: the batched decoding step.
    cache = denoiser.new_cache(8, num_rows=3)
    for row, part in enumerate(rows):
        model(part[:5], causal_layout(5, row=row), cache)
    steps = Layout([Segment(5, 1, store=True, row=row) for row in range(3)])
    batched = model(tokens[:3], steps, cache)
    alone = [
        model(torch.cat([part[:5], tokens[row : row + 1]]), causal_layout(6))[-1:]
        for row, part in enumerate(rows)
    ]
    close(batched, torch.cat(alone))


def test_training_layout_equals_serving_layout(denoiser: Denoiser, tokens: Tensor) -> None:
    """`[noisy | clean]` in one forward, canvases on a cache, and drafting at inference agree on every canvas token."""
    model, adapter, clean = denoiser.transformer, denoiser.adapter, Segment(0, LENGTH)
    places = [(5, 4), (9, 6), (18, 4)]
    blocks = []
    for start, length in places:
        block = tokens[start : start + length].clone()
        block[[0, -1]] = MASK
        blocks.append(block)
    noisy = [
        Segment(start, length, parent=0, offset=start, causal=False, adapter=True) for start, length in places
    ]
    joint = model(denoiser.embed(torch.cat([tokens, *blocks])), Layout([clean, *noisy]), None, adapter)
    close(joint[:LENGTH], model(tokens, causal_layout(LENGTH)))

    cache = cached(denoiser, tokens)
    before = cache.keys.clone(), cache.values.clone()
    states = denoiser.canvas_states(
        [Canvas(0, start, block) for (start, _), block in zip(places, blocks, strict=True)], cache
    )
    for whole, was in zip((cache.keys, cache.values), before, strict=True):
        torch.testing.assert_close(whole, was, rtol=0, atol=0, equal_nan=True)

    for number, ((start, length), block) in enumerate(zip(places, blocks, strict=True)):
        # The open last token is not run under a logit shift; drop it from the joint forward's canvas too.
        segment = Segment(start, length - 1, parent=0, offset=start, causal=False, adapter=True)
        inputs = denoiser.embed(torch.cat([tokens, block[:-1]]))
        trained = model(inputs, Layout([clean, segment]), None, adapter)
        close(states.hidden[states.canvas == number], trained[LENGTH:])
        drafted = denoiser.draft(
            [int(tokens[start - 1])], block, start - 1, cached(denoiser, tokens[: start - 1])
        )
        ahead = torch.cat([trained[start - 1 : start], trained[LENGTH:]])
        close(drafted.logits, model.logits(ahead))
        close(drafted.next_logits, model.logits(trained[start - 1 : start])[0])


def test_a_draft_stores_the_seed_causally_and_nothing_else(denoiser: Denoiser, tokens: Tensor) -> None:
    drafted = cached(denoiser, tokens[:9])
    denoiser.draft([int(tokens[9])], torch.full((6,), MASK), 9, drafted)
    causal = cached(denoiser, tokens[:10])
    close(drafted.keys[:, :, :, :10], causal.keys[:, :, :, :10])
    assert drafted.lengths == [10]


def test_the_adapter_leaves_the_causal_stream_bit_for_bit(denoiser: Denoiser, tokens: Tensor) -> None:
    bare = Denoiser(denoiser.transformer)
    caches = denoiser.new_cache(LENGTH), bare.new_cache(LENGTH)
    logits = [d.causal(tokens, 0, c, num_heads=LENGTH) for d, c in zip((denoiser, bare), caches, strict=True)]
    assert torch.equal(logits[0], logits[1])
    assert torch.equal(caches[0].keys, caches[1].keys)


def test_without_a_shift_every_canvas_position_predicts_itself(denoiser: Denoiser, tokens: Tensor) -> None:
    plain = Denoiser(denoiser.transformer, denoiser.adapter, MASK, logit_shift=False, banned=(3,))
    canvas = torch.full((4,), MASK)
    draft = plain.draft([int(tokens[5])], canvas, 5, cached(denoiser, tokens[:5]))
    states = plain.canvas_states([Canvas(0, 6, canvas)], cached(denoiser, tokens[:6]))
    close(draft.logits, plain.head(states.hidden))
    assert states.position.tolist() == [0, 1, 2, 3]
    assert torch.isneginf(draft.logits[:, 3]).all()


def test_a_cache_that_lacks_what_the_layout_sees_is_refused(denoiser: Denoiser, tokens: Tensor) -> None:
    model, cache = denoiser.transformer, denoiser.new_cache(4)
    with pytest.raises(ValueError, match="which holds 0"):
        model(tokens[:2], causal_layout(2, start=3, row=0), cache)
    with pytest.raises(ValueError, match="capacity 4"):
        model(tokens[:5], causal_layout(5, row=0), cache)
    with pytest.raises(ValueError, match="cache row 0, which the given cache does not have"):
        model(tokens[:2], causal_layout(2, row=0))
    with pytest.raises(ValueError, match="tokens were given"):
        model(tokens[:2], causal_layout(3))

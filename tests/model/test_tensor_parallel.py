"""A transformer shared out over two processes gives the values of one, and says so when a process is lost."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from tiny_models import CONFIG, byte_tokenizer, random_transformer

from unmask.config import AdapterConfig
from unmask.decoding.generate import generate
from unmask.decoding.options import Options
from unmask.engine.engine import Engine
from unmask.errors import ProcessLostError, UsageError
from unmask.layout import Layout, Segment
from unmask.model.adapter import Adapter
from unmask.model.cache import KVCache
from unmask.model.denoiser import Denoiser
from unmask.model.tensor_parallel import LeadingTransformer, share_out

RICH = replace(CONFIG, qkv_bias=True, output_bias=True, mlp_bias=True, qk_norm=True)
DRAFT = Layout(
    [Segment(0, 3, store=True, row=0), Segment(3, 4, parent=0, offset=3, causal=False, adapter=True)]
)
STEP = Layout([Segment(3, 1, store=True, row=0)])
PROMPT = [5, 9, 3]
MIXED = [
    Options("ar", max_tokens=8),
    Options("diffusion", max_tokens=8, block_length=4),
    Options("speculative", max_tokens=8, block_length=4, temperature=1.0, seed=3),
]


@pytest.fixture(scope="module")
def whole() -> Denoiser:
    adapter = Adapter(RICH, AdapterConfig(rank=2, alpha=3.0)).requires_grad_(False)
    generator = torch.Generator().manual_seed(1)
    for parameter in adapter.parameters():
        parameter.normal_(0.0, 0.3, generator=generator)
    return Denoiser(random_transformer(RICH), adapter=adapter, mask_token_id=RICH.vocab_size)


@pytest.fixture(scope="module")
def shared(whole: Denoiser) -> Iterator[Denoiser]:
    leading, adapter = share_out(whole.transformer, whole.adapter, 2)
    yield replace(whole, transformer=leading, adapter=adapter)
    leading.close()


@torch.inference_mode()
def test_every_parameter_is_shared_out_rightly(whole: Denoiser, shared: Denoiser) -> None:
    outcomes = []
    for denoiser in (whole, shared):
        cache = KVCache(
            denoiser.transformer.config, capacity=8, dtype=torch.float32, device=torch.device("cpu")
        )
        drafted = denoiser.transformer(torch.arange(7), DRAFT, cache, denoiser.adapter)
        outcomes.append(torch.cat([drafted, denoiser.transformer(torch.tensor([9]), STEP, cache)]))
    torch.testing.assert_close(outcomes[1], outcomes[0], rtol=1e-4, atol=1e-4)
    assert cache.keys.shape[2] == RICH.num_kv_heads // 2


@pytest.mark.parametrize("options", MIXED, ids=lambda options: options.mode)
def test_two_processes_decode_as_one(whole: Denoiser, shared: Denoiser, options: Options) -> None:
    ours, truth = (generate(each, byte_tokenizer(), PROMPT, options) for each in (shared, whole))
    assert ours.token_ids == truth.token_ids


def test_an_engine_runs_over_two_processes(whole: Denoiser, shared: Denoiser) -> None:
    asked = [([start, *PROMPT], options) for start in range(2) for options in MIXED]
    ours, truth = (
        Engine(each, byte_tokenizer(), num_pages=64, page_size=4).generate(asked) for each in (shared, whole)
    )
    assert [answer.token_ids for answer in ours] == [answer.token_ids for answer in truth]


def test_what_no_cache_has_any_more_is_forgotten(shared: Denoiser) -> None:
    leading = shared.transformer
    assert isinstance(leading, LeadingTransformer)
    for _ in range(3):
        generate(shared, byte_tokenizer(), PROMPT, MIXED[0])
    shared.causal(torch.tensor(PROMPT), 0, shared.new_cache(4))
    assert len(leading._known) == 2  # keys and values of the last cache


@pytest.mark.parametrize("num_processes", [3, 4])
def test_what_cannot_be_shared_out_is_refused(num_processes: int) -> None:
    with pytest.raises(UsageError, match=rf"of this model cannot be shared out evenly over {num_processes}"):
        share_out(random_transformer(), None, num_processes)


def test_a_lost_process_is_told(shared: Denoiser) -> None:  # the last: no forward runs after it
    leading = shared.transformer
    assert isinstance(leading, LeadingTransformer)
    leading._processes[0].kill()
    with pytest.raises(ProcessLostError, match="a part of the model has ended"):
        leading(torch.arange(7), DRAFT, shared.new_cache(8))

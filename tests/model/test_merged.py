"""A merged transformer gives the values of the plain one; rounded to int8 it does not care which rows run together."""

from dataclasses import replace

import pytest
import torch
from tiny_models import CONFIG, random_transformer
from torch import Tensor

from random_denoisers import letter_tokenizer, prompt_of, random_denoiser
from unmask.config import AdapterConfig, LinearName, TransformerConfig
from unmask.decoding.generate import generate
from unmask.decoding.language_model import LanguageModel, load
from unmask.decoding.options import Options
from unmask.errors import UsageError
from unmask.evaluation.fingerprint import fingerprint
from unmask.layout import Layout, Segment, causal_layout
from unmask.model import merged, quantize
from unmask.model.adapter import Adapter
from unmask.model.cache import KVCache
from unmask.model.kernels import kernels
from unmask.model.merged import in_few_shapes, merge
from unmask.model.quantize import check_quantisation, int8_product

SHAPES = {
    "plain": CONFIG,
    "biases and norms": replace(CONFIG, qkv_bias=True, output_bias=True, mlp_bias=True, qk_norm=True),
    "a head of its own": replace(CONFIG, tie_embeddings=False, num_kv_heads=4),
}
DRAFT = Layout(
    [Segment(0, 3, store=True, row=0), Segment(3, 4, parent=0, offset=3, causal=False, adapter=True)]
)
SCATTERED = Layout([Segment(0, 2, adapter=True), Segment(0, 3), Segment(0, 2, adapter=True)])


def random_adapter(config: TransformerConfig, targets: tuple[LinearName, ...]) -> Adapter:
    adapter = Adapter(config, AdapterConfig(rank=2, alpha=3.0, targets=targets)).requires_grad_(False)
    generator = torch.Generator().manual_seed(1)
    for parameter in adapter.parameters():
        parameter.normal_(0.0, 0.3, generator=generator)
    return adapter


@pytest.fixture(autouse=True, params=["compiled", "torch"])
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it on compiled kernels, and on torch's operations."""
    if request.param == "torch":
        for module in (merged, quantize):
            monkeypatch.setattr(module, "kernels", lambda: None)
    elif kernels() is None:
        pytest.skip("no compiled kernels")


@pytest.fixture(scope="module")
def weight() -> Tensor:
    return torch.randn(96, 64, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("layout", [DRAFT, SCATTERED], ids=["draft", "scattered"])
@pytest.mark.parametrize("targets", [("q", "k", "v", "o", "gate", "up", "down"), ("v", "gate")], ids=len)
@torch.inference_mode()
def test_merging_changes_no_value(shape: str, layout: Layout, targets: tuple[LinearName, ...]) -> None:
    config = SHAPES[shape]
    plain, adapter = random_transformer(config), random_adapter(config, targets)
    fast, fast_adapter = merge(plain, adapter)
    tokens = torch.arange(layout.num_tokens) + 5
    outcomes = []
    for model, own_adapter in ((plain, adapter), (fast, fast_adapter)):
        cache = KVCache(config, capacity=8, dtype=torch.float32, device=torch.device("cpu"))
        hidden = model(tokens, layout, cache if layout is DRAFT else None, own_adapter)
        outcomes.append((hidden, model.logits(hidden)))
    for ours, wanted in zip(outcomes[1], outcomes[0], strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_bfloat16_is_merged_too() -> None:
    plain = random_transformer().to(torch.bfloat16)
    adapter = random_adapter(CONFIG, ("q", "down"))
    fast, fast_adapter = merge(plain, adapter)
    tokens = torch.arange(SCATTERED.num_tokens)
    ours, wanted = fast(tokens, SCATTERED, None, fast_adapter), plain(tokens, SCATTERED, None, adapter)
    assert ours.dtype == torch.bfloat16
    torch.testing.assert_close(ours, wanted, rtol=0.1, atol=0.1)


def test_int8_is_close(weight: Tensor) -> None:
    x, bias = torch.randn(7, 64, generator=torch.Generator().manual_seed(3)), torch.arange(96.0)
    exact = x @ weight.T
    error = int8_product(weight, bias)(x) - bias - exact
    assert error.norm() / exact.norm() < 0.015
    assert error.abs().max() > 0


def test_int8_gives_what_its_definition_gives(weight: Tensor) -> None:
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(4))
    scale, peak = weight.abs().amax(1) / 127, x.abs().amax(1, keepdim=True) / 127
    integers = (x / peak).round().double() @ (weight / scale[:, None]).round().double().T
    torch.testing.assert_close(int8_product(weight, None)(x), (integers * peak * scale).float())


def test_int8_rows_do_not_see_each_other(weight: Tensor) -> None:
    product = int8_product(weight, None)
    x = torch.randn(32, 64, generator=torch.Generator().manual_seed(5))
    x[3] *= 1000
    together = product(x)
    for count in range(1, 32):
        assert torch.equal(product(x[:count]), together[:count])
    assert torch.equal(torch.cat([product(row[None]) for row in x]), together)


def test_a_row_of_zeros_gives_zeros(weight: Tensor) -> None:
    assert torch.equal(int8_product(weight, None)(torch.zeros(2, 64)), torch.zeros(2, 96))


@torch.inference_mode()
def test_int8_states_do_not_depend_on_what_runs_beside_them() -> None:
    plain = random_transformer()
    model, adapter = merge(plain, random_adapter(CONFIG, ("q", "down")), int8_product, exact_rows=True)
    tokens = torch.arange(20) * 7 % CONFIG.vocab_size

    def run(*lengths: int, drafts: bool) -> tuple[Tensor, Tensor]:
        """Run the tokens in pieces, each with a canvas after it or none; return their states and stored keys."""
        cache = KVCache(CONFIG, capacity=24, dtype=torch.float32, device=torch.device("cpu"))
        states, start = [], 0
        for length in lengths:
            piece = tokens[start : start + length]
            layout = causal_layout(length, start=start, row=0)
            if drafts:
                canvas = Segment(start + length, 3, parent=0, offset=length, causal=False, adapter=True)
                layout, piece = (
                    Layout([*layout.segments, canvas]),
                    torch.cat([piece, torch.tensor([9, 8, 7])]),
                )
            states.append(model(piece, layout, cache, adapter)[:length])
            start += length
        return torch.cat(states), cache.keys[:, :, :, :20].clone()

    states, keys = run(*[1] * 20, drafts=False)
    for lengths, drafts in (((20,), False), ((1, 8, 11), False), ((4, 9, 7), True)):
        others, other_keys = run(*lengths, drafts=drafts)
        assert torch.equal(others, states)
        assert torch.equal(other_keys, keys)


def test_greedy_speculation_in_int8_writes_what_ar_in_int8_writes() -> None:
    tokenizer = letter_tokenizer()
    for seed in range(12):
        denoiser = random_denoiser(seed=seed, num_allowed=6, sharpness=1.0)
        transformer, adapter = merge(denoiser.transformer, denoiser.adapter, int8_product, exact_rows=True)
        denoiser = replace(denoiser, transformer=transformer, adapter=adapter)
        texts = [
            generate(denoiser, tokenizer, prompt_of(seed), Options(mode=mode, max_tokens=60)).token_ids
            for mode in ("ar", "speculative")
        ]
        assert texts[0] == texts[1]


def test_products_run_in_few_shapes(weight: Tensor) -> None:
    seen = []

    def multiply(x: Tensor) -> Tensor:
        seen.append(len(x))
        return x @ weight.T

    product = in_few_shapes(multiply)
    x = torch.randn(600, 64, generator=torch.Generator().manual_seed(6))
    for count in (0, 1, 16, 17, 33, 599):
        torch.testing.assert_close(product(x[:count]), x[:count] @ weight.T)
    assert seen == [0, 1, 16, 18, 36, 640]
    torch.testing.assert_close(in_few_shapes(multiply, fewest=4)(x[:3]), x[:3] @ weight.T)
    assert seen[-1] == 4
    for count in range(601):
        product(x[:count])
    assert len(set(seen)) < 64


@pytest.mark.parametrize(
    ("quantize", "device", "dtype", "said"),
    [
        ("int4", "cpu", "float32", "unknown quantisation 'int4'"),
        ("int8", "cuda", "float32", "on device 'cuda'"),
        ("int8", "cpu", "bfloat16", "with dtype 'bfloat16'"),
    ],
)
def test_what_cannot_be_quantised_is_refused(quantize: str, device: str, dtype: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        check_quantisation(quantize, device=device, dtype=dtype)


def test_loading_in_int8(tiny_folder: object) -> None:
    said: list[str] = []
    plain, rounded = load(str(tiny_folder)), load(str(tiny_folder), quantize="int8", progress=said.append)
    assert rounded.quantize == "int8"
    assert "int8" in said[-1]
    assert fingerprint(plain) == fingerprint(LanguageModel(plain.checkpoint)) != fingerprint(rounded)
    assert rounded.generate("hello", max_tokens=4).num_tokens

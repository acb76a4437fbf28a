"""The compiled kernels give what torch gives, and the same bits for a row whatever runs beside it."""

import os
import random
import stat
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tiny_models import CONFIG, random_transformer
from torch import Tensor

from random_denoisers import letter_tokenizer, prompt_of, random_denoiser
from unmask.config import RopeConfig
from unmask.decoding.generate import generate
from unmask.decoding.options import Options
from unmask.engine.engine import Engine
from unmask.layout import Layout, Segment, causal_layout
from unmask.model import kernels as module
from unmask.model import native as native_module
from unmask.model.cache import KVCache
from unmask.model.kernels import Kernels, kernels
from unmask.model.merged import merge
from unmask.model.native import native
from unmask.model.quantize import int8_product
from unmask.model.rotary import Rotary
from unmask.model.transformer import rms_norm

SIZES = [(1, 4, 3), (5, 64, 96), (21, 70, 50), (9, 33, 130)]
"""Rows, inner and outer sizes: whole panels and parts of them."""


@pytest.fixture
def own() -> Kernels:
    if (found := kernels()) is None:
        pytest.skip(native().reason)
    return found


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """An empty cache directory, and kernels that nobody has looked for."""
    monkeypatch.setenv("UNMASK_CACHE", str(tmp_path / "cache"))
    native.cache_clear()
    kernels.cache_clear()
    yield tmp_path
    native.cache_clear()
    kernels.cache_clear()


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("rows", "inner", "outer"), SIZES)
def test_a_product_is_torchs(own: Kernels, rows: int, inner: int, outer: int) -> None:
    x, weight, bias = noise(rows, inner), noise(outer, inner, seed=1), noise(outer, seed=2)
    torch.testing.assert_close(own.product(weight)(x), x @ weight.T, atol=1e-4, rtol=1e-4)
    product = own.product(weight, bias)
    y = product(x)
    torch.testing.assert_close(y, F.linear(x, weight, bias), atol=1e-4, rtol=1e-4)
    assert torch.equal(y, torch.cat([product(row[None]) for row in x]))
    assert torch.equal(product(x.t().contiguous().t()), y)


def test_a_product_is_added_to_columns_of_rows(own: Kernels) -> None:
    x, weight, y = noise(6, 40), noise(20, 8, seed=1), noise(6, 50, seed=2)
    wanted = y.clone()
    wanted[:, 10:30] += x[:, 16:24] @ weight.T
    own.adder(weight)(x[:, 16:24], y[:, 10:30])
    torch.testing.assert_close(y, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("rows", "inner", "outer"), SIZES)
def test_an_int8_product_is_its_definition(own: Kernels, rows: int, inner: int, outer: int) -> None:
    x, weight, bias = noise(rows, inner), noise(outer, inner, seed=1), noise(outer, seed=2)
    scale, peak = weight.abs().amax(1) / 127, x.abs().amax(1, keepdim=True) / 127
    integers = (x / peak).round().double() @ (weight / scale[:, None]).round().double().T
    product = own.product_int8(weight, bias)
    y = product(x)
    torch.testing.assert_close(y, (integers * peak * scale + bias).float())
    assert torch.equal(y, torch.cat([product(row[None]) for row in x]))


def test_what_is_no_number_stays_none(own: Kernels) -> None:
    x, weight = noise(3, 16), noise(8, 16)
    x[1, 5] = torch.nan
    for make in (own.product, own.product_int8):
        y = make(weight, None)(x)
        assert y[1].isnan().all()
        assert not y[[0, 2]].isnan().any()


@pytest.mark.parametrize("x", [noise(2, 3, 16), noise(2, 15), noise(16), noise(2, 16).double()])
def test_a_product_refuses_what_are_no_rows_of_its_own(own: Kernels, x: Tensor) -> None:
    for make in (own.product, own.product_int8):
        with pytest.raises(ValueError, match="rows of 16 float32"):
            make(noise(8, 16), None)(x)


@pytest.mark.parametrize("size", [4, 24, 64])
def test_what_lies_between_products_is_torchs(own: Kernels, size: int) -> None:
    x, weight = 5 * noise(7, size), noise(size, seed=1)
    torch.testing.assert_close(own.rms_norm(x, weight, 1e-5), rms_norm(x, weight, 1e-5))
    gate_up = 20 * noise(7, 2 * size)
    gate_up[0, 0], gate_up[1, 0] = 1e4, -1e4
    gate, up = gate_up.chunk(2, dim=-1)
    torch.testing.assert_close(own.gated(gate_up), F.silu(gate) * up)
    rotary = Rotary(RopeConfig(), size, torch.tensor([0, 1, 5, 6, 7, 100, 2000]))
    heads = noise(7, 5, size)
    wanted = torch.cat([rotary.apply(heads[:, :3]), heads[:, 3:]], dim=1)
    turned = own.turn(heads, 3, rotary)
    torch.testing.assert_close(heads, wanted)
    assert torch.equal(turned, heads[:, :3])


@pytest.mark.parametrize("quantize", [False, True], ids=["float32", "int8"])
@torch.inference_mode()
def test_no_bit_of_a_state_depends_on_what_runs_beside_it(own: Kernels, quantize: bool) -> None:
    """Steps, chunks, drafts beside a canvas, and the paths of trees: the same states, and the same stored keys."""
    config = replace(CONFIG, max_positions=256, head_size=20, qk_norm=True)
    plain = random_transformer(config)
    model, _ = merge(plain, None, int8_product, exact_rows=True) if quantize else merge(plain, None)
    assert model.exact
    tokens = torch.arange(90) * 7 % config.vocab_size

    def stepwise() -> tuple[Tensor, KVCache]:
        cache = KVCache(config, capacity=96, dtype=torch.float32, device=torch.device("cpu"))
        states = [model(tokens[[i]], causal_layout(1, start=i, row=0), cache) for i in range(90)]
        return torch.cat(states), cache

    wanted, stored = stepwise()
    generator = random.Random(0)
    for _ in range(6):
        cache = KVCache(config, capacity=96, dtype=torch.float32, device=torch.device("cpu"))
        start = 0
        while start < 90:
            length = min(generator.choice([1, 3, 20, 80]), 90 - start)
            ahead = min(generator.randint(0, 6), 90 - start - length)
            segments = [Segment(start, length, store=True, row=0)]
            packed = [tokens[start : start + length]]
            last = 0
            for place in range(
                ahead
            ):  # a path of a tree, a token each, and beside each one that is on no path
                parent = segments[last]
                for token, is_path in ((tokens[start + length + place], True), (torch.tensor(3), False)):
                    if is_path:
                        path = len(segments)
                    segments.append(Segment(start + length + place, 1, last, parent.length))
                    packed.append(token[None])
                last = path
            segments.append(Segment(start + length, 2, 0, length, causal=False))
            packed.append(torch.tensor([9, 8]))
            order = Layout(segments)
            states = model(torch.cat(packed), order, cache)
            assert torch.equal(states[:length], wanted[start : start + length])
            for place in range(ahead):
                assert torch.equal(states[length + 2 * place], wanted[start + length + place])
            start += length
        assert torch.equal(cache.keys[:, :, :, :90], stored.keys[:, :, :, :90])


def test_a_text_is_the_same_bits_of_logprobs_alone_and_among_others(own: Kernels) -> None:
    tokenizer = letter_tokenizer()
    denoiser = random_denoiser(seed=1, num_allowed=6, sharpness=1.0)
    transformer, adapter = merge(denoiser.transformer, denoiser.adapter)
    denoiser = replace(denoiser, transformer=transformer, adapter=adapter)
    asked = [
        (
            prompt_of(seed),
            Options(mode=mode, max_tokens=20, num_logprobs=logprobs, seed=seed, temperature=1.0),
        )
        for seed in range(6)
        for mode, logprobs in (("ar", 2), ("diffusion", None), ("speculative", 2))
    ]
    engine = Engine(denoiser, tokenizer, num_pages=60, page_size=3, token_budget=40, max_requests=9)
    for (prompt, options), together in zip(asked, engine.generate(asked), strict=True):
        alone = generate(denoiser, tokenizer, prompt, options)
        assert together.token_ids == alone.token_ids
        assert together.logprobs == alone.logprobs


@pytest.fixture
def compiler(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A script in the place of the C compiler, which counts its calls."""
    script = fresh / "compiler"
    script.write_text(f'#!/bin/sh\necho "$@" >> {fresh}/calls\nexec cc "$@"\n')
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("CC", str(script))
    return script


def calls(compiler: Path) -> int:
    return compiler.with_name("calls").read_text().count("\n")


def test_kernels_are_compiled_once(own: Kernels, compiler: Path) -> None:
    assert kernels() is not None
    first = calls(compiler)
    native.cache_clear()
    assert native().library is not None
    assert calls(compiler) == first + 1  # it was asked for its version
    (folder,) = (compiler.parent / "cache").iterdir()
    assert [path.suffix for path in folder.iterdir()] == [".so"]


def test_without_a_compiler_torch_serves(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(fresh))
    monkeypatch.delenv("CC", raising=False)
    assert native().library is None
    assert "no C compiler" in native().reason
    assert kernels() is None
    model, _ = merge(random_transformer(), None)
    assert not model.exact
    assert model(torch.arange(4), causal_layout(4)).shape == (4, CONFIG.hidden_size)


def test_they_can_be_switched_off(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNMASK_NATIVE", "0")
    assert kernels() is None
    assert "UNMASK_NATIVE" in native().reason


def test_a_compiler_that_fails_is_named(fresh: Path, compiler: Path) -> None:
    compiler.write_text('#!/bin/sh\n[ "$1" = --version ] || { echo "no such instruction" >&2; exit 1; }\n')
    assert kernels() is None
    assert "no such instruction" in native().reason
    assert not list((fresh / "cache" / "kernels").iterdir())


def test_a_cache_that_cannot_be_written_costs_the_kernels_only(
    fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (fresh / "cache").write_text("a file")
    assert kernels() is None
    assert native().reason


def test_kernels_that_miscalculate_are_not_used(
    own: Kernels, fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = native_module.SOURCE.read_text()
    assert "sum[r][0] += each * w0;" in source
    faulty = fresh / "kernels.c"
    faulty.write_text(source.replace("sum[r][0] += each * w0;", "sum[r][0] += each * w1;"))
    monkeypatch.setattr(native_module, "SOURCE", faulty)
    assert native().library is not None
    assert module.kernels() is None


def test_older_processors_give_the_same(own: Kernels, fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other widths of vectors, and int8 products without their instruction."""
    x, weight = noise(5, 70), noise(50, 70, seed=1)
    product, rounded = own.product(weight)(x), own.product_int8(weight, None)(x)
    gated, normed = own.gated(x), own.rms_norm(x, weight[0], 1e-5)
    abilities = Path("/proc/cpuinfo").read_text()
    for name, options in {"avx2": ("-mavx2", "-mfma"), "x86-64": ("-march=x86-64",)}.items():
        if "avx2" not in abilities:
            pytest.skip("not x86 with AVX2")
        folder = fresh / name
        folder.mkdir()
        target = folder / "kernels.so"
        flags = [flag for flag in native_module._FLAGS if flag != "-march=native"]
        command = ["cc", *flags, *options, "-shared", str(native_module.SOURCE), "-o", str(target), "-lm"]
        subprocess.run(command, check=True, capture_output=True, env=os.environ)
        other = Kernels(module.ctypes.CDLL(str(target)))
        torch.testing.assert_close(other.product(weight)(x), product, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(other.product_int8(weight, None)(x), rounded)
        torch.testing.assert_close(other.gated(x), gated)
        torch.testing.assert_close(other.rms_norm(x, weight[0], 1e-5), normed)

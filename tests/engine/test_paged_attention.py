"""Triton's kernel over pages and the compiled one against plain PyTorch: any mix of segments, and whole requests.

Without CUDA the kernel runs in Triton's interpreter, which `conftest` asks for.
"""

import os
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from mixes import TOKENIZER, denoiser_of, random_mix
from torch import Tensor

from unmask.config import TransformerConfig
from unmask.engine.engine import Engine
from unmask.engine.paged_cache import PagedCache, PagedRows
from unmask.engine.pages import PagePool, PageTable
from unmask.layout import Layout, Segment
from unmask.model.attention import AttentionPlan
from unmask.model.kernels import kernels
from unmask.model.native_plan import NativePlan
from unmask.model.plan import Plan

pytest.importorskip("triton")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

COMPILE = """
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from unmask.engine.paged_kernel import attend_tile

sizes = dict(PAGE_SIZE=16, GROUP=3, SIZE=64, WIDTH=64, ROWS=64, KEYS=32)
numbers = ("pages", "tiles", "owners", "places", "limits", "cached")
tensors = ("queries", "keys", "values", "output", "page_keys", "page_values")
for dtype in ("fp32", "bf16"):
    kinds = {
        **dict.fromkeys(attend_tile.arg_names, "i32"),
        **dict.fromkeys(tensors, "*" + dtype),
        **dict.fromkeys(numbers, "*i64"),
        **dict.fromkeys(sizes, "constexpr"),
        "causals": "*i1",
        "scale": "fp32",
    }
    for architecture in (80, 90):
        kernel = compile(ASTSource(attend_tile, kinds, sizes), target=GPUTarget("cuda", architecture, 32))
        print(*kernel.asm.keys() & {"cubin"})
"""


def random_island(generator: random.Random, row: int) -> list[Segment]:
    """Return what one request may run: decided tokens, stored or not, and canvases and branches that grow from them."""
    start, length = generator.randint(0, 40), generator.randint(1, 9)
    if generator.random() < 0.2:
        return [Segment(start, length, causal=False, adapter=True, row=row)]
    segments = [Segment(start, length, store=generator.random() < 0.7, row=row)]
    for _ in range(generator.randint(0, 4)):
        parent = generator.randrange(len(segments))
        above = segments[parent]
        offset = generator.randint(0, above.length)
        segments.append(
            Segment(
                above.start + offset,
                generator.randint(1, 6),
                parent,
                offset,
                causal=generator.random() < 0.5,
            )
        )
    return segments


def joined(islands: list[list[Segment]]) -> Layout:
    segments: list[Segment] = []
    for island in islands:
        past = len(segments)
        segments += [s if s.parent is None else replace(s, parent=s.parent + past) for s in island]
    return Layout(segments)


def paged_rows(
    config: TransformerConfig,
    layout: Layout,
    page_size: int,
    generator: random.Random,
    noise: torch.Generator,
) -> tuple[PagedCache, PagedRows]:
    """Return a cache full of noise, and rows of shuffled pages that hold what the layout sees and stores."""
    pool = PagePool(64 * 8 // page_size, page_size)
    tables = []
    for island in layout.islands:
        table = PageTable(pool)
        table.reserve(island.num_cached + island.end - island.begin)
        generator.shuffle(table.pages)
        tables.append(table)
    cache = PagedCache(
        config, num_pages=pool.num_pages, page_size=page_size, dtype=torch.float32, device=DEVICE
    )
    for whole in (cache.keys, cache.values):
        whole.copy_(torch.randn(whole.shape, generator=noise))
    return cache, cache.rows(tables, [island.num_cached for island in layout.islands])


def compiled_plan(rows: PagedRows, layout: Layout) -> Plan:
    own = kernels()
    if own is None or DEVICE.type != "cpu":
        pytest.skip("no compiled kernels")
    return NativePlan(own, layout, rows)


@pytest.mark.parametrize("make_plan", [PagedRows.kernel_plan, compiled_plan], ids=["triton", "compiled"])
@pytest.mark.parametrize("seed", range(12))
def test_a_kernel_is_attention_over_pages(make_plan: Callable[[PagedRows, Layout], Plan], seed: int) -> None:
    generator, noise = random.Random(seed), torch.Generator().manual_seed(seed)
    num_kv_heads, group = generator.choice([1, 2]), generator.choice([1, 2, 3])
    config = TransformerConfig(
        vocab_size=8,
        hidden_size=8,
        num_layers=2,
        num_heads=num_kv_heads * group,
        num_kv_heads=num_kv_heads,
        head_size=generator.choice([8, 16, 24]),
        intermediate_size=8,
        max_positions=64,
    )
    layout = joined([random_island(generator, row) for row in range(generator.randint(1, 4))])
    page_size = generator.choice([1, 3, 8])
    cache, rows = paged_rows(config, layout, page_size, generator, noise)
    pages = cache.keys.clone(), cache.values.clone()

    def packed(num_heads: int) -> Tensor:
        return torch.randn(layout.num_tokens, num_heads, config.head_size, generator=noise).to(DEVICE)

    queries, keys, values = packed(config.num_heads), packed(num_kv_heads), packed(num_kv_heads)
    before = list(rows.lengths)
    plain = AttentionPlan(layout, rows, DEVICE)
    wanted = plain.attend(1, queries, keys, values)
    plain.finish()
    lengths, stored = list(rows.lengths), (cache.keys.clone(), cache.values.clone())

    for whole, content in zip((cache.keys, cache.values), pages, strict=True):
        whole.copy_(content)
    rows.lengths[:] = before
    plan = make_plan(rows, layout)
    ours = plan.attend(1, queries, keys, values)
    plan.finish()
    torch.testing.assert_close(ours, wanted, atol=2e-5, rtol=2e-5)
    assert rows.lengths == lengths
    for whole, content in zip((cache.keys, cache.values), stored, strict=True):
        assert torch.equal(whole, content)


@pytest.mark.parametrize("seed", [3, 5])
def test_requests_write_the_same_through_the_kernel(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    kind, mix = random_mix(seed)
    asked = [(visit.prompt, replace(visit.options, max_tokens=6)) for visit in mix.visits]

    def written() -> list[tuple[int, ...]]:
        engine = Engine(denoiser_of(kind), TOKENIZER, num_pages=60, page_size=4)
        return [generation.token_ids for generation in engine.generate(asked)]

    wanted = written()
    monkeypatch.setattr(PagedRows, "plan", PagedRows.kernel_plan)
    assert written() == wanted


def test_the_kernel_compiles_for_gpus() -> None:
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["cubin"] * 4

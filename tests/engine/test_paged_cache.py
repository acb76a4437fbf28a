"""The cache over pages against the contiguous one, and many parts in one forward against one each."""

import pytest
import torch
from mixes import denoiser_of

from unmask.engine.paged_cache import PagedCache
from unmask.engine.pages import PagePool, PageTable
from unmask.layout import Layout, Segment
from unmask.model.denoiser import Denoiser
from unmask.model.kernels import kernels
from unmask.model.merged import merge
from unmask.model.packed import Part

TOKENS = [5, 9, 3, 14, 2, 2, 7]


def paged(denoiser: Denoiser, num_pages: int = 16, page_size: int = 3) -> tuple[PagePool, PagedCache]:
    model = denoiser.transformer
    return PagePool(num_pages, page_size), PagedCache(
        model.config, num_pages=num_pages, page_size=page_size, dtype=model.dtype, device=model.device
    )


def table_of(pool: PagePool, num_positions: int) -> PageTable:
    table = PageTable(pool)
    table.reserve(num_positions)
    return table


@pytest.mark.parametrize("in_order", [True, False])
def test_what_is_written_through_a_table_is_read_through_it(in_order: bool) -> None:
    pool, cache = paged(denoiser_of(0))
    tables = [table_of(pool, 7), table_of(pool, 4), table_of(pool, 7)]
    if not in_order:
        for table in tables:
            table.pages.reverse()
    rows = cache.rows(tables, [0, 0, 0])
    config = denoiser_of(0).transformer.config
    generator = torch.Generator().manual_seed(0)
    shape = (1, config.num_kv_heads, 4, config.head_size)
    written = {
        row: (torch.rand(shape, generator=generator), torch.rand(shape, generator=generator))
        for row in range(3)
    }
    for row, (keys, values) in written.items():
        rows.write(1, slice(row, row + 1), 0, keys, values)
    for row, both in written.items():
        for ours, wanted in zip(rows.read(1, slice(row, row + 1), 4), both, strict=True):
            assert torch.equal(ours, wanted)
            is_view = ours.untyped_storage().data_ptr() in {
                whole.untyped_storage().data_ptr() for whole in (cache.keys, cache.values)
            }
            assert is_view == in_order
    both_keys, _ = rows.read(1, slice(0, 2), 4)
    assert torch.equal(both_keys, torch.cat([written[0][0], written[1][0]]))
    untouched, _ = rows.read(0, slice(0, 3), 4)
    assert not untouched.any()


def test_a_place_beyond_a_short_row_cannot_be_reached() -> None:
    pool, cache = paged(denoiser_of(0))
    rows = cache.rows([table_of(pool, 2), table_of(pool, 9)], [0, 0])
    assert (rows.num_rows, rows.capacity) == (2, 9)
    with pytest.raises(IndexError):
        rows.read(0, slice(0, 1), 4)


@pytest.mark.parametrize("store", [True, False])
def test_the_kernels_reach_no_place_beyond_a_short_row(store: bool) -> None:
    if kernels() is None:
        pytest.skip("no compiled kernels")
    denoiser = denoiser_of(0)
    model, _ = merge(denoiser.transformer, None)
    pool, cache = paged(denoiser)
    rows = cache.rows([table_of(pool, 2), table_of(pool, 7)], [4, 0])  # the first row says that it has more
    with pytest.raises(IndexError):
        model(torch.tensor([5]), Layout([Segment(4, 1, store=store, row=0)]), rows)
    model(torch.tensor([5]), Layout([Segment(0, 1, store=store, row=0)]), rows)


def test_page_bytes_are_the_bytes_of_a_page() -> None:
    denoiser = denoiser_of(0)
    _, cache = paged(denoiser, num_pages=16, page_size=3)
    total = cache.keys.nbytes + cache.values.nbytes
    assert PagedCache.page_bytes(denoiser.transformer.config, 3, torch.float32) * 16 == total


@pytest.mark.parametrize("kind", [0, 3, 6])
def test_parts_of_all_kinds_in_one_forward_have_the_laws_of_each_alone(kind: int) -> None:
    denoiser = denoiser_of(kind)
    mask = denoiser.mask_token_id
    assert mask is not None
    pool, cache = paged(denoiser)
    tables = [table_of(pool, 9) for _ in range(5)]
    stored = [0, 3, 4, 4, 2]
    for table, length in zip(tables, stored, strict=True):
        if length:
            denoiser.laws([Part(0, 0, TOKENS[:length])], cache.rows([table], [0]))
    canvas = [mask, 8, mask, mask]
    belief = torch.rand(4, denoiser.vocab_size, generator=torch.Generator().manual_seed(1)).softmax(-1)
    parts = [
        Part(0, 0, TOKENS, num_laws=1),  # a prefill
        Part(1, 3, TOKENS[3:5]),  # a chunk
        Part(
            2, 3, TOKENS[3:4], store=False, canvas=canvas, places=[0, 2, 3], time=0.75, belief=belief
        ),  # a denoise
        Part(3, 4, TOKENS[4:7], num_laws=2),  # a verification
        Part(4, 2, TOKENS[2:3], num_laws=1, canvas=canvas, places=[0, 1, 2, 3]),  # a draft
    ]
    laws = denoiser.laws(parts, cache.rows(tables, stored))
    assert [len(part) for part in laws] == [1, 0, 3, 2, 5]

    wanted = []
    for part, length in zip(parts, stored, strict=True):
        alone = denoiser.new_cache(9)
        if length:
            denoiser.causal(torch.tensor(TOKENS[:length]), 0, alone)
        if part.canvas:
            noisy, time = torch.tensor(part.canvas), torch.tensor(part.time)
            draft = denoiser.draft(part.tokens, noisy, part.start, alone, time=time, belief=part.belief)
            wanted += [draft.next_logits[None]] * part.num_laws + [draft.logits[list(part.places)]]
        else:
            tokens = torch.tensor(part.tokens)
            wanted.append(denoiser.causal(tokens, part.start, alone, num_heads=part.num_laws))
    torch.testing.assert_close(torch.cat(laws), torch.cat(wanted), atol=1e-4, rtol=1e-4)

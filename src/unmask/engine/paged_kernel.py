"""The Triton kernel of attention over pages.

Every program serves a tile: some queries of one island, all heads that share a key head. It walks over the island's
cached pages and then over its packed tokens, and keeps a running maximum and sum, in float32 (online softmax; Milakov
and Gimelshein 2018, arXiv 1805.02867; FlashAttention, Dao et al. 2022, arXiv 2205.14135; pages as in vLLM, Kwon et al.
2023, arXiv 2309.06180).
"""

import triton
import triton.language as tl


@triton.jit
def attend_tile(
    queries,
    keys,
    values,
    output,
    page_keys,
    page_values,
    pages,
    tiles,
    owners,
    places,
    causals,
    limits,
    cached,
    scale,
    query_stride,
    key_stride,
    value_stride,
    output_stride,
    slot_stride,
    most_pages,
    num_segments,
    PAGE_SIZE: tl.constexpr,
    GROUP: tl.constexpr,
    SIZE: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
):
    """Attend for one tile and one key head; WIDTH: the head size rounded up to a power of two."""
    tile, head = tiles + 5 * tl.program_id(0), tl.program_id(1)
    first, begin, end = tl.load(tile), tl.load(tile + 1), tl.load(tile + 2)
    row, num_cached = tl.load(tile + 3), tl.load(tile + 4)

    lane, column, at = tl.arange(0, ROWS), tl.arange(0, WIDTH), tl.arange(0, KEYS)
    token = first + lane // GROUP
    is_real = (lane < ROWS // GROUP * GROUP) & (token < end)
    in_head = column < SIZE
    inside = is_real[:, None] & in_head[None, :]
    place_in_token = (head * GROUP + lane % GROUP)[:, None] * SIZE + column[None, :]
    q = tl.load(queries + token[:, None] * query_stride + place_in_token, mask=inside, other=0.0)
    owner = tl.load(owners + token, mask=is_real, other=0)
    is_causal = tl.load(causals + token, mask=is_real, other=0)
    sees_before = tl.load(cached + token, mask=is_real, other=0)

    highest = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    sums = tl.zeros((ROWS, WIDTH), tl.float32)

    for start in range(0, num_cached, KEYS):
        position = start + at
        exists = position < num_cached
        page = tl.load(pages + row * most_pages + position // PAGE_SIZE, mask=exists, other=0)
        slot = page * PAGE_SIZE + position % PAGE_SIZE
        here = slot[:, None] * slot_stride + head * SIZE + column[None, :]
        loads = exists[:, None] & in_head[None, :]
        k = tl.load(page_keys + here, mask=loads, other=0.0)
        v = tl.load(page_values + here, mask=loads, other=0.0)
        seen = is_real[:, None] & (position[None, :] < sees_before[:, None])
        highest, total, sums = _absorb(q, k, v, seen, scale, highest, total, sums)

    for start in range(begin, end, KEYS):
        other = start + at
        exists = other < end
        loads = exists[:, None] & in_head[None, :]
        here = head * SIZE + column[None, :]
        k = tl.load(keys + other[:, None] * key_stride + here, mask=loads, other=0.0)
        v = tl.load(values + other[:, None] * value_stride + here, mask=loads, other=0.0)
        other_owner = tl.load(owners + other, mask=exists, other=0)
        place = tl.load(places + other, mask=exists, other=0)
        known = is_real[:, None] & exists[None, :]
        limit = tl.load(limits + owner[:, None] * num_segments + other_owner[None, :], mask=known, other=0)
        ahead = (owner[:, None] == other_owner[None, :]) & (other[None, :] > token[:, None])
        seen = known & (place[None, :] < limit) & ~(ahead & (is_causal[:, None] != 0))
        highest, total, sums = _absorb(q, k, v, seen, scale, highest, total, sums)

    attended = sums / tl.where(total == 0, 1.0, total)[:, None]
    tl.store(
        output + token[:, None] * output_stride + place_in_token,
        attended.to(output.dtype.element_ty),
        mask=inside,
    )


@triton.jit
def _absorb(q, k, v, seen, scale, highest, total, sums):
    """Return the running maximum, sum of weights and weighted sum of values with some more keys in them."""
    scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
    scores = tl.where(seen, scores, float("-inf"))
    new_highest = tl.maximum(highest, tl.max(scores, 1))
    level = tl.where(new_highest == float("-inf"), 0.0, new_highest)  # a row that has seen nothing yet
    weights = tl.exp(scores - level[:, None])
    fade = tl.exp(highest - level)
    total = total * fade + tl.sum(weights, 1)
    sums = sums * fade[:, None] + tl.dot(weights.to(v.dtype), v, input_precision="ieee")
    return new_highest, total, sums

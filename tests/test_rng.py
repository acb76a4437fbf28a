"""Keyed noise against numpy's own generator."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unmask.rng import Stream, uniforms


def reference(seed: int, position: int, step: int, stream: Stream) -> float:
    key, counter = seed % 2**64 | int(stream) << 64, position | step << 64
    return float(np.random.Generator(np.random.Philox(key=key, counter=counter)).random())


@given(
    seeds=st.lists(st.integers(-5, 2**65), min_size=1, max_size=3),
    place=st.integers(0, 2**60),
    step=st.integers(0, 2**60),
    stream=st.sampled_from(Stream),
)
def test_the_batched_noise_is_numpys(seeds: list[int], place: int, step: int, stream: Stream) -> None:
    places = np.array([[place + row, place + 7] for row in range(len(seeds))])
    steps = [step + row for row in range(len(seeds))]
    found = uniforms(seeds, places, steps, stream)
    assert found.dtype == np.float64
    assert found.tolist() == [
        [reference(seed, int(position), at, stream) for position in row]
        for seed, row, at in zip(seeds, places, steps, strict=True)
    ]


@pytest.mark.parametrize("stream", Stream)
def test_the_noise_is_uniform(stream: Stream) -> None:
    values = uniforms(range(50), np.arange(1000)[None].repeat(50, 0), [3] * 50, stream)
    assert values.mean() == pytest.approx(0.5, abs=4 * 50_000**-0.5 * 12**-0.5)
    counts = np.histogram(values, 64, (0, 1))[0]
    assert ((counts - 50_000 / 64) ** 2).sum() / (50_000 / 64) < 63 + 5 * (2 * 63) ** 0.5

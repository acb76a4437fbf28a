"""What ancestral sampling ends with, by products of transition matrices over all states of a sequence."""

from pathlib import Path

import pytest
import torch
from enumerated import Table, ancestral_law, divergence

from unmask.diffusion import SCHEDULES, Prediction, Process, build_process


def gaps(process: Process, table: Table, kind: Prediction) -> list[float]:
    """Return KL(data || samples) for 1, 16, 64 and 256 steps."""
    laws = [ancestral_law(process, table.exact(process, kind), table.length, n) for n in (1, 16, 64, 256)]
    for law in laws:
        assert float(law.sum()) == pytest.approx(1)
    return [divergence(table, law, process.num_states) for law in laws]


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("noise", ["masked", "uniform", "hybrid:0.2"])
def test_the_law_of_samples_converges_to_the_data(noise: str, schedule: str) -> None:
    process = build_process(noise, 3, 3, SCHEDULES.parse(schedule))
    table = Table.random(3, 2)
    one, some, more, most = gaps(process, table, process.prediction)
    # A single step draws all tokens independently.
    marginal_entropies = float(torch.special.entr(table.marginals).sum())
    assert one == pytest.approx(marginal_entropies - table.entropy, rel=1e-6)
    assert some < one / 20
    assert more < some / 3.5
    assert most < more / 3.5
    assert most < 2e-4


@pytest.mark.parametrize("noise", ["uniform", "hybrid:0.2"])
def test_with_the_posterior_in_its_place_more_steps_do_not_help(noise: str) -> None:
    process = build_process(noise, 3, 3, SCHEDULES.parse("linear"))
    _, some, more, most = gaps(process, Table.random(3, 2), "posterior")
    assert some > 0.08
    assert most >= more >= some
    if noise == "uniform":
        page = (Path(__file__).parents[2] / "docs" / "diffusion.md").read_text()
        assert f"stays {most:.2f} nats away" in page

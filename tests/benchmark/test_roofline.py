"""The roofline: operations and bytes are what a forward does, crossovers are where its times say."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure
from tiny_models import CONFIG, random_transformer
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from command_line import Command
from unmask.benchmark import machine_rates
from unmask.benchmark.forward_cost import ForwardCost, ForwardShape, Machine
from unmask.benchmark.projection import project
from unmask.benchmark.roofline import (
    Point,
    Roofline,
    RooflineConfig,
    break_evens,
    crossovers,
    measure_roofline,
)
from unmask.benchmark.roofline_picture import draw_roofline
from unmask.decoding.language_model import load
from unmask.errors import UsageError
from unmask.evaluation.figure import new_figure
from unmask.layout import Layout, Segment
from unmask.model.denoiser import Denoiser


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("shape", [ForwardShape(1, 1, 5), ForwardShape(2, 3, 7), ForwardShape(3, 4, 0)])
def test_operations_and_bytes_are_those_of_the_forward(shape: ForwardShape, tie: bool) -> None:
    config = replace(CONFIG, tie_embeddings=tie, num_kv_heads=CONFIG.num_heads)
    transformer = random_transformer(config)
    denoiser = Denoiser(transformer)
    cache = denoiser.new_cache(max(shape.context, 1), num_rows=shape.batch)
    cache.lengths = [shape.context] * shape.batch
    cache.keys.zero_()
    cache.values.zero_()
    layout = Layout(
        [Segment(shape.context, shape.queries, causal=False, row=row) for row in range(shape.batch)]
    )
    # torch counts the plain kernel's products alone
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel([SDPBackend.MATH]):
        denoiser.head(transformer(torch.arange(layout.num_tokens), layout, cache))
    cost = ForwardCost.of(config, shape, bytes_per_number=4)
    assert cost.operations == counter.get_total_flops()

    maps = [
        weight
        for name, weight in transformer.state_dict().items()
        if weight.ndim == 2 and "embed" not in name
    ]
    weights = sum(weight.numel() for weight in maps) + (config.vocab_size * config.hidden_size if tie else 0)
    read = sum(side[:, :, :, : shape.context].numel() for side in (cache.keys, cache.values))
    new = shape.batch * shape.queries
    written = 2 * new * config.num_layers * config.num_kv_heads * config.head_size
    assert cost.num_bytes == 4 * (weights + new * config.hidden_size + read + written)


def test_a_causal_forward_sees_half_the_pairs() -> None:
    both, causal = (
        ForwardCost.of(CONFIG, ForwardShape(1, 8, 0, causal=causal), bytes_per_number=2)
        for causal in (False, True)
    )
    per_pair = 4 * CONFIG.num_layers * CONFIG.num_heads * CONFIG.head_size
    assert both.operations - causal.operations == per_pair * (64 - 36)
    assert both.num_bytes == causal.num_bytes


def test_the_floor_is_the_slower_of_the_two() -> None:
    cost = ForwardCost(operations=100.0, num_bytes=10.0)
    assert cost.floor_s(Machine("slow arithmetic", 10.0, 100.0)) == 10.0
    assert cost.floor_s(Machine("slow memory", 1000.0, 1.0)) == 10.0
    assert Machine("", 100.0, 4.0).ridge == 25.0


def points(seconds: dict[tuple[int, int], float]) -> list[Point]:
    return [Point(ForwardShape(b, n, 4), taken, 1.0, 1.0, 1.0) for (b, n), taken in seconds.items()]


def test_break_even_and_crossover() -> None:
    timed = points({(1, 1): 1.0, (1, 8): 1.5, (2, 1): 1.0, (2, 8): 2.5, (4, 1): 1.0, (4, 8): 5.0})
    assert [each.tokens_per_forward for each in break_evens(timed)] == [1.5, 2.5, 5.0]
    assert [each.batch for each in crossovers(timed, [1.2, 2.0, 3.0, 6.0])] == [1, 2, 4, None]


def test_the_picture_says_where_modes_lie_and_from_which_batch_ar_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = {(1, 1): 1.0, (1, 8): 1.5, (2, 1): 1.0, (2, 8): 2.5, (4, 1): 1.0, (4, 8): 5.0}
    machine = Machine("", 4.0, 8.0)
    timed = [
        Point(ForwardShape(batch, queries, 4), taken, 8.0 * batch * queries, 8.0, 1.0)
        for (batch, queries), taken in seconds.items()
    ]
    config = RooflineConfig((1, 8), (1, 2, 4), (4,), (2.0, 6.0))
    crossed = crossovers(timed, config.tokens_per_forward)
    report = Roofline(config, {}, {}, machine, tuple(timed), break_evens(timed), crossed, ())
    drawn: list[Figure] = []

    def figure(num_panels: int) -> Figure:
        drawn.append(new_figure(num_panels))
        return drawn[0]

    monkeypatch.setattr("unmask.benchmark.roofline_picture.new_figure", figure)
    draw_roofline(report, tmp_path, block_length=8)
    roof, _, crossing = drawn[0].axes
    labels = [text.get_text() for text in roof.get_legend().get_texts()]
    assert labels == ["1 query: ar", "8 queries: a block"]
    fastest = max(point.operations / point.seconds for point in timed)
    assert max(roof.lines[0].get_ydata()) == fastest / 1e9 > machine.operations_per_s / 1e9
    assert [text.get_text() for text in crossing.texts] == ["2: ar from batch 2", "6: block to batch 4"]


def test_the_roof_is_the_best_that_was_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_rates, "_SIDES", (2, 4))
    monkeypatch.setattr(machine_rates, "_STREAM_NUMBERS", 4096)
    monkeypatch.setattr(machine_rates, "time_calls", lambda *call, repeats: [3.0, 0.5, 2.0])
    machine = machine_rates.measure_machine(torch.device("cpu"), torch.float32)
    assert machine.operations_per_s == 2 * 4**3 / 0.5
    assert machine.bytes_per_s == 4096 * 4 / 0.5


def test_projections_follow_the_closed_form() -> None:
    found = {(each.shape, each.accelerator): each for each in project({"tiny": CONFIG}, (1, 32), (3.0,), 1)}
    large = found["Nemotron-Labs-Diffusion-8B", "H100 SXM"]
    # Weights alone, bound by memory: tokens/s = TPF * bandwidth / bytes; crossover TPF * ridge / queries = 28 (E2).
    assert large.tokens_per_s == pytest.approx(3 * large.ar_tokens_per_s, rel=0.01)
    assert large.ar_tokens_per_s == pytest.approx(3.35e12 / (2 * 7.95e9), rel=0.01)
    assert large.crossover_batch == 32  # the first power of two above 28


def test_the_command_measures_and_goes_on(unmask_command: Command, tiny_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "roof"
    arguments = "--queries 1,4 --batches 1,2 --contexts 8 --tokens-per-forward 2 --repeats 1".split()
    done = unmask_command("roofline", tiny_model, "--out", out, *arguments)
    assert done.status == 0, done.err
    assert "GB/s" in done.out
    assert "not measurements" in done.out
    assert (out / "roofline.png").stat().st_size > 1000
    first = json.loads((out / "roofline.json").read_text())
    assert [point["shape"]["queries"] for point in first["points"]] == [1, 4, 1, 4]
    lines = (out / "points.jsonl").read_text().splitlines(keepends=True)
    (out / "points.jsonl").write_text("".join(lines[:2]))
    again = json.loads(unmask_command("roofline", tiny_model, "--out", out, *arguments, "--json").out)
    assert again["machine"] == first["machine"]
    assert again["points"][:2] == first["points"][:2]
    assert again["points"][2] != first["points"][2]


def test_times_are_not_continued_on_another_machine(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(str(tiny_model))
    config = RooflineConfig(queries=(1,), batches=(1,), contexts=(8,), repeats=1)
    measure_roofline(model, config, tmp_path / "roof")
    monkeypatch.setattr("unmask.evaluation.provenance.processor_name", lambda: "another")
    with pytest.raises(UsageError, match="processor"):
        measure_roofline(model, config, tmp_path / "roof")


def test_refusals(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="must contain 1"):
        RooflineConfig(queries=(2, 4))
    with pytest.raises(UsageError, match="window"):
        measure_roofline(load(str(tiny_model)), RooflineConfig(contexts=(20_000,)), tmp_path / "roof")

"""The picture of a speed-of-light measurement."""

from pathlib import Path

import numpy as np

from unmask.evaluation.figure import error_bars, new_figure
from unmask.evaluation.speed_of_light import ORACLES, SpeedOfLight

PICTURE_FILE = "speed-of-light.png"


def draw_speed_of_light(report: SpeedOfLight, folder: Path) -> Path:
    """Draw tokens per forward against block length, and the ceiling by kind of prompt; FailureError without matplotlib.

    Every decode forward counts, for the oracles as for what was measured.
    """
    figure = new_figure(2)
    by_block, by_kind = figure.subplots(1, 2)
    lengths = [block.block_length for block in report.blocks]
    for name in ORACLES:
        speeds = [block.overall.oracles[name].tokens_per_forward for block in report.blocks]
        by_block.errorbar(
            lengths, [speed.mean for speed in speeds], yerr=error_bars(speeds), marker="o", ms=4, label=name
        )
    for place, name in enumerate(report.blocks[0].overall.ways):
        ways = [list(block.overall.ways.values())[place].tokens_per_forward for block in report.blocks]
        means = [np.nan if speed is None else speed.mean for speed in ways]
        by_block.plot(lengths, means, ls="--", lw=1, marker=".", label=name.rpartition(", block")[0])
    by_block.set_xscale("log", base=2)
    by_block.set_xticks(lengths, [str(length) for length in lengths])
    by_block.set(xlabel="block length", ylabel="tokens per forward", ylim=(0.8, None))
    by_block.legend(frameon=False, fontsize=7)

    kinds = list(report.blocks[0].kinds)
    width = 0.8 / len(lengths)
    for number, block in enumerate(report.blocks):
        ceilings = [block.kinds[kind].oracles["fewest"].tokens_per_forward for kind in kinds]
        shift = (number - (len(lengths) - 1) / 2) * width
        by_kind.bar(
            np.arange(len(kinds)) + shift,
            [speed.mean for speed in ceilings],
            width,
            yerr=error_bars(ceilings),
            label=f"block {block.block_length}",
            error_kw={"lw": 0.7},
        )
    by_kind.set_xticks(range(len(kinds)), kinds, rotation=30, ha="right")
    by_kind.set(ylabel="tokens per forward, fewest forwards", ylim=(1, None))
    by_kind.legend(frameon=False, fontsize=7)
    path = folder / PICTURE_FILE
    figure.savefig(path, dpi=130)
    return path

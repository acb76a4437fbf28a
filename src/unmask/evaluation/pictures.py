"""The pictures of a judgement; they need matplotlib, which the extra `plot` installs."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unmask.evaluation.figure import error_bars, new_figure
from unmask.evaluation.judgement import Judgement
from unmask.evaluation.trials import SettingScores


def draw(judgement: Judgement, folder: Path) -> list[Path]:
    """Write the pictures of a judgement to a folder and return their paths.

    Raise FailureError where matplotlib is not installed.
    """
    pictures: Mapping[str, tuple[Callable[[Any, Judgement], None], int, bool]] = {
        "acceptance": (_acceptance, 2, bool(_speculative(judgement))),
        "agreement": (_agreement, 1, bool(_diffusion(judgement))),
    }
    paths = []
    for name, (draw_on, num_panels, is_there) in pictures.items():
        if is_there:
            figure = new_figure(num_panels)
            draw_on(figure.subplots(1, num_panels, squeeze=False)[0], judgement)
            paths.append(folder / f"{name}.png")
            figure.savefig(paths[-1], dpi=130)
    if judgement.curve:
        paths.append(folder / "training.png")
        draw_curve(judgement.curve, paths[-1])
    return paths


def draw_curve(curve: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw the metrics of a conversion, the lines of its metrics.jsonl; FailureError where matplotlib is missing."""
    keys = [key for key in ("loss", "tokens_per_cycle") if any(line.get(key) is not None for line in curve)]
    figure = new_figure(len(keys))
    for axis, key in zip(figure.subplots(1, len(keys), squeeze=False)[0], keys, strict=True):
        for split, style in (("train", {"color": "0.8", "lw": 0.8}), ("held_out", {"marker": "o", "ms": 3})):
            lines = [line for line in curve if line.get("split") == split and line.get(key) is not None]
            steps, values = [line["step"] for line in lines], [line[key] for line in lines]
            axis.plot(steps, values, label=split.replace("_", " "), **style)
        axis.set(xlabel="step", ylabel=key.replace("_", " "))
        axis.legend(frameon=False)
    figure.savefig(path, dpi=130)


def _speculative(judgement: Judgement) -> list[SettingScores]:
    return [scores for scores in judgement.settings if scores.overall.acceptance is not None]


def _diffusion(judgement: Judgement) -> list[SettingScores]:
    return [scores for scores in judgement.settings if scores.overall.agreement is not None]


def _acceptance(axes: Sequence[Any], judgement: Judgement) -> None:
    """Draw tokens per cycle by kind of prompt, and the share of drafts kept by place of the canvas."""
    by_kind, by_place = axes
    settings = _speculative(judgement)
    width = 0.8 / len(settings)
    for number, scores in enumerate(settings):
        kinds = list(scores.kinds)
        averages = [scores.kinds[kind].tokens_per_cycle for kind in kinds]
        shift = (number - (len(settings) - 1) / 2) * width
        by_kind.bar(
            np.arange(len(kinds)) + shift,
            [np.nan if value is None else value.mean for value in averages],
            width,
            yerr=error_bars(averages),
            label=scores.setting.name,
            error_kw={"lw": 0.7},
        )
        by_kind.set_xticks(range(len(kinds)), kinds, rotation=30, ha="right")
        acceptance = scores.overall.acceptance
        assert acceptance is not None  # _speculative
        shares = acceptance.kept_by_place
        by_place.errorbar(
            range(1, len(shares) + 1),
            [share.mean for share in shares],
            yerr=error_bars(shares),
            marker="o",
            ms=3,
            lw=1,
            label=scores.setting.name,
        )
    by_kind.set(ylabel="tokens per draft-verify cycle", ylim=(1, None))
    by_place.set(xlabel="place on the canvas", ylabel="share of drafts kept", ylim=(0, 1.02))
    by_place.legend(frameon=False, fontsize=7)


def _agreement(axes: Sequence[Any], judgement: Judgement) -> None:
    """Draw how many tokens of mode diffusion are those of mode ar, against tokens per forward."""
    (axis,) = axes
    points = [
        (scores.setting.threshold, scores.overall.tokens_per_forward, scores.overall.agreement)
        for scores in _diffusion(judgement)
    ]
    known = [(t, f, a) for t, f, a in points if t is not None and f is not None and a is not None]
    forwards = [forward for _, forward, _ in known]
    x = [forward.mean for forward in forwards]
    shares = {
        "before the first difference": [agreement.before_difference for _, _, agreement in known],
        "overall": [agreement.overall for _, _, agreement in known],
    }
    for label, y in shares.items():
        axis.errorbar(
            x,
            [value.mean for value in y],
            xerr=error_bars(forwards),
            yerr=error_bars(y),
            marker="o",
            ms=4,
            lw=1,
            label=label,
        )
    for threshold, forward, _ in known:
        axis.annotate(f"{threshold:g}", (forward.mean, 0.02), fontsize=7, ha="center")
    axis.set(
        xlabel="tokens per forward, at thresholds",
        ylabel="tokens as in mode ar",
        ylim=(0, 1.02),
    )
    axis.legend(frameon=False, fontsize=8)

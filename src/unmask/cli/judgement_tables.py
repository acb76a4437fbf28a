"""The tables of a judgement."""

from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from unmask.cli.tables import add_row, new_table, shown

if TYPE_CHECKING:
    from unmask.evaluation.judgement import Judgement


def judgement_tables(judgement: "Judgement") -> list[Table]:
    """Return what a judgement says of text, speculation, agreement and kinds of prompts."""
    tables = (_text_table, _speculation_table, _agreement_table, _kinds_table)
    return [table(judgement) for table in tables]


def _text_table(judgement: "Judgement") -> Table:
    table = new_table("held-out text", "text", "tokens", "law", "perplexity", "bits per byte")
    for score in judgement.texts:
        laws = {"base": score.base, "ar": score.ar, **score.bounds}
        known = {law: likelihood for law, likelihood in laws.items() if likelihood is not None}
        for place, (law, likelihood) in enumerate(known.items()):
            bound = "≤ " if law in score.bounds else ""
            add_row(
                table,
                *(("", "") if place else (Path(score.source).name, f"{score.num_tokens:,}")),
                law,
                f"{bound}{likelihood.perplexity.mean:.2f}",
                f"{bound}{likelihood.bits_per_byte}",
            )
    checks = [score.is_unchanged for score in judgement.texts if score.is_unchanged is not None]
    if checks:
        table.caption = (
            "next-token logits: those of the base, bit for bit"
            if all(checks)
            else "next-token logits: not those of the base"
        )
        table.caption_justify = "left"
    return table


def _speculation_table(judgement: "Judgement") -> Table:
    first = judgement.settings[0].overall
    table = new_table(
        f"the same text in fewer forwards: {first.num_prompts} prompts, ± standard error over prompts",
        *("setting", "tokens/cycle", "tokens/forward", "tokens/s", "x ar", "text of ar"),
    )
    for scores in judgement.settings:
        overall = scores.overall
        if overall.agreement is None:
            add_row(
                table,
                scores.setting.name,
                shown(overall.tokens_per_cycle),
                shown(overall.tokens_per_forward),
                "" if overall.tokens_per_s is None else f"{overall.tokens_per_s:.1f}",
                "" if overall.speed_over_ar is None else f"{overall.speed_over_ar:.2f}",
                f"{overall.num_equal_to_ar} of {overall.num_prompts}",
            )
    return table


def _agreement_table(judgement: "Judgement") -> Table:
    table = new_table(
        "share of tokens as in mode ar",
        *("setting", "tokens/forward", "up to a difference", "overall", "text of ar"),
    )
    for scores in judgement.settings:
        overall, agreement = scores.overall, scores.overall.agreement
        if agreement is not None:
            add_row(
                table,
                scores.setting.name,
                shown(overall.tokens_per_forward),
                str(agreement.before_difference),
                str(agreement.overall),
                f"{overall.num_equal_to_ar} of {overall.num_prompts}",
            )
    return table


def _kinds_table(judgement: "Judgement") -> Table:
    kinds = list(judgement.settings[0].kinds)
    table = new_table("by kind of prompt: tokens per cycle, else per forward", "setting", *kinds)
    for scores in judgement.settings:
        values = [
            scores.kinds[kind].tokens_per_cycle or scores.kinds[kind].tokens_per_forward for kind in kinds
        ]
        add_row(
            table, scores.setting.name, *("" if value is None else f"{value.mean:.2f}" for value in values)
        )
    return table

"""Scores that others published, each with its source: to stand beside ours, never among them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from pydantic import TypeAdapter


@dataclass(frozen=True)
class PublishedScores:
    """One model in one mode: `scores` in per cent by our names of tasks, as `source` gives them.

    `protocol`: how the source measured; prompts, shots and metrics are its own, so close numbers mean little.
    `tokens_per_forward`: as the source counts forwards; None where it does not say.
    """

    model: str
    mode: str
    scores: Mapping[str, float]
    tokens_per_forward: float | None
    source: str
    protocol: str


@cache
def published_scores() -> tuple[PublishedScores, ...]:
    """Return everything in the package's table."""
    text = (files("unmask.evaluation") / "published.json").read_text(encoding="utf-8")
    return TypeAdapter(tuple[PublishedScores, ...]).validate_json(text)


def published_for(tasks: Sequence[str]) -> tuple[PublishedScores, ...]:
    """Return the entries that have at least one of some tasks."""
    return tuple(entry for entry in published_scores() if any(task in entry.scores for task in tasks))


def markdown_table(entries: Sequence[PublishedScores], tasks: Sequence[str]) -> str:
    """Return entries of one source as a table in Markdown: a row for each, per cent."""
    lines = [
        "| " + " | ".join(("model", "mode", *tasks, "tokens/forward")) + " |",
        "| " + " | ".join(("---",) * (len(tasks) + 3)) + " |",
    ]
    for entry in entries:
        cells = [f"{entry.scores[task]:.1f}" if task in entry.scores else "" for task in tasks]
        speed = "" if entry.tokens_per_forward is None else f"{entry.tokens_per_forward:g}"
        lines.append("| " + " | ".join((entry.model, entry.mode, *cells, speed)) + " |")
    return "\n".join(lines) + "\n"

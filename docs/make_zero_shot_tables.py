"""Write the zero-shot tables of README.md from benchmarks/zero_shot.json; a test fails when they are out of date.

make docs
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
README, REPORT = ROOT / "README.md", ROOT / "benchmarks" / "zero_shot.json"
BEGIN, END = "<!-- zero-shot, written by docs/make_zero_shot_tables.py -->", "<!-- end of zero-shot -->"

WRITTEN = ("ar", "speculative", "one token a step", *(f"threshold {tau}" for tau in (0.99, 0.9, 0.7, 0.5)))
SCORED = {"likelihood": "ar, speculative: exact likelihood", "bound": "diffusion: bound, 8 samples"}
"""Runs, and what their columns are called."""

Run = Mapping[str, Any]


def section(runs: Mapping[str, Run]) -> str:
    """Return what stands between the markers: a table of written answers and one of choices, each if there is any."""
    written = {run: runs[run] for run in WRITTEN if run in runs}
    scored = {name: runs[run] for run, name in SCORED.items() if run in runs}
    parts = []
    if written:
        parts.append(
            "### Zero-shot: answers written in every mode\n\n"
            "SmolLM2-135M-Instruct, bare prompts, greedy; per cent with standard errors. `one token a step` and the\n"
            "thresholds are mode `diffusion`. The model was made for `ar`, its canvas came by a short conversion.\n\n"
            f"{table(written)}\n{closing(written)}\n{equality(written)}"
        )
    if scored:
        parts.append(
            "### Zero-shot: choices by their likelihood\n\n"
            "No rule or threshold enters a likelihood, so there is one column for both modes of the autoregressive\n"
            "law, and one for the diffusion bound, which lies below the log-likelihood. LAMBADA asks whether the last\n"
            "word is the likeliest, of which a bound says nothing.\n\n"
            f"{table(scored)}"
        )
    if parts:
        parts.append(
            "The first items of each task; tasks, metrics and prompts: [evaluation](docs/evaluation.md)\n"
            "(`python benchmarks/zero_shot.py`, report in `benchmarks/zero_shot.json`).\n"
        )
    return "\n".join(parts)


def table(runs: Mapping[str, Run]) -> str:
    """Return a Markdown table: a row for each task, a column for each run, per cent with standard errors."""
    found = {name: {task["task"]: task for task in run["tasks"]} for name, run in runs.items()}
    tasks = list(dict.fromkeys(task for own in found.values() for task in own))
    lines = [_row(["task", "items", *runs]), _row(["---", *["---:"] * (len(runs) + 1)])]
    for task in tasks:
        counts = sorted({own[task]["num_items"] for own in found.values() if task in own})
        cells = [score(own.get(task)) for own in found.values()]
        lines.append(_row([f"`{task}`", " to ".join(f"{count:,}" for count in counts), *cells]))
    return "\n".join(lines) + "\n"


def closing(runs: Mapping[str, Run]) -> str:
    """Return the line below the table: tokens per forward over the tasks that all of the runs have answered alike."""
    common = _common(runs)
    speeds = []
    for name, run in runs.items():
        own = [task for task in run["tasks"] if task["task"] in common]
        tokens, forwards = (sum(task[key] for task in own) for key in ("num_tokens", "num_decode_forwards"))
        if forwards:
            speeds.append(f"{name} {tokens / forwards:.2f}")
    return (
        f"Tokens per decode forward, over all tasks ({len(common)}): {', '.join(speeds)}. Answers are short, and the\n"
        "first token of each comes from the prompt's own forward, which is not counted.\n"
    )


def equality(runs: Mapping[str, Run]) -> str:
    """Return how many answers of speculation are those of mode ar."""
    if "speculative" not in runs:
        return ""
    counts = runs["speculative"]["equal_to_ar"].values()
    equal, total = (sum(pair[place] for pair in counts) for place in (0, 1))
    return f"Of {total:,} answers, mode `speculative` wrote {equal:,} as mode `ar` did.\n"


def score(task: Mapping[str, Any] | None) -> str:
    """Return a task's own metric in per cent with its standard error; nothing where it was not measured."""
    if task is None or task["metric"] not in task["scores"]:
        return ""
    found = task["scores"][task["metric"]]
    error = "" if found["standard_error"] is None else f" ± {100 * found['standard_error']:.1f}"
    return f"{100 * found['mean']:.1f}{error}"


def page(readme: str, report: Mapping[str, Any]) -> str:
    """Return the README with the section as it should be."""
    head, _, rest = readme.partition(BEGIN)
    _, _, tail = rest.partition(END)
    text = section(report["runs"])
    return f"{head}{BEGIN}\n{text}{END}{tail}"


def _common(runs: Mapping[str, Run]) -> set[str]:
    """Return the tasks of which every run has the same items."""
    items = [{(task["task"], task["digest"]) for task in run["tasks"]} for run in runs.values()]
    return {name for name, _ in set.intersection(*items)}


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    report = json.loads(REPORT.read_text(encoding="utf-8")) if REPORT.exists() else {"runs": {}}
    README.write_text(page(README.read_text(encoding="utf-8"), report), encoding="utf-8")

"""Score the default model on zero-shot tasks in every mode, and keep report and picture here.

    python benchmarks/zero_shot.py [--limit 500] [--model smollm2-135m] [--runs ar speculative] [--tasks piqa gsm8k]

Choices are scored by the autoregressive likelihood, which the modes ar and speculative write (run "likelihood"), and by
the diffusion bound; answers are written in every mode. Speculation must write what mode ar does, and the report counts
the answers that are equal. All modes answer the same items in turn, a few at a time, in one engine that keeps the
items' prompts meanwhile, so that each prompt is computed once. Every run keeps its items in build/zero-shot, so Ctrl-C
and the same command again go on, a larger --limit or other --tasks add to what is there, and other --runs may go on
beside. Writes benchmarks/zero_shot.json and .png; docs/make_zero_shot_tables.py puts the tables into the README.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

import unmask
from unmask.cli.run_bar import RunBar
from unmask.decoding.language_model import LanguageModel
from unmask.decoding.options import Options
from unmask.decoding.rules import RULES
from unmask.engine.engine import Engine
from unmask.engine.side_by_side import side_by_side
from unmask.evaluation.figure import new_figure
from unmask.evaluation.model_scorer import LIKELIHOODS
from unmask.evaluation.provenance import provenance
from unmask.evaluation.tasks import find_tasks
from unmask.evaluation.zero_shot import evaluate

HERE = Path(__file__).parent
FOLDER = HERE.parent / "build" / "zero-shot"
CHOICES = ("lambada", "hellaswag", "piqa", "arc-easy", "arc-challenge", "winogrande", "sciq", "boolq")
ANSWERS = (
    "lambada-written",
    "basic-skills-arithmetic-written",
    "basic-skills-string-operations-written",
    "basic-skills-pattern-written",
    "basic-skills-common-knowledge-written",
    "basic-skills-logical-reasoning-written",
    "basic-skills-coding-written",
    "humaneval-infilling",
    "gsm8k",
)
THRESHOLDS = (0.99, 0.9, 0.7, 0.5)
RUNS: dict[str, tuple[tuple[str, ...], Options, str]] = {
    "ar": (ANSWERS, Options("ar"), "ar"),
    "speculative": (ANSWERS, Options("speculative"), "ar"),
    "one token a step": (ANSWERS, Options("diffusion", rule=RULES.parse("top-k:1")), "bound:8"),
    **{
        f"threshold {tau}": (ANSWERS, Options("diffusion", rule=RULES.parse(f"threshold:{tau}")), "bound:8")
        for tau in THRESHOLDS
    },
    "likelihood": (CHOICES, Options("ar"), "ar"),
    # The bound depends on no rule. LAMBADA asks for the likeliest word, of which a bound says nothing.
    "bound": (CHOICES[1:], Options("diffusion"), "bound:8"),
}
ITEMS_AT_ONCE = 100
NUM_PAGES = 2048
"""Of keys and values: what runs at once, and the prompts of so many items of one task."""


def folder_of(run: str) -> Path:
    return FOLDER / run.replace(" ", "-")


def answers_of(run: str) -> dict[tuple[str, str], list[object]]:
    """Return the answers of a run, by task and item; none where it was not made."""
    path = folder_of(run) / "items.jsonl"
    if not path.exists():
        return {}
    items = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {(item["task"], item["item"]): item["answers"] for item in items}


def equal_to_ar(run: str) -> dict[str, tuple[int, int]]:
    """Return, for every task with written answers, how many of a run's are those of mode ar, and of how many."""
    truths, counts = answers_of("ar"), {}
    for (task, item), answers in answers_of(run).items():
        if task in ANSWERS and (task, item) in truths:
            equal, total = counts.get(task, (0, 0))
            counts[task] = (equal + (answers == truths[task, item]), total + 1)
    return counts


def measure(model: LanguageModel, runs: Sequence[str], tasks: Sequence[str] | None, limit: int) -> None:
    """Answer the first `limit` items of the tasks in the runs, task after task, some items at a time in every run."""
    engine = Engine(model.denoiser, model.tokenizer, num_pages=NUM_PAGES)
    together = partial(side_by_side, engine=engine)
    for task in (*ANSWERS, *CHOICES) if tasks is None else tasks:
        own = [run for run in runs if task in RUNS[run][0]]
        for upto in range(ITEMS_AT_ONCE, limit + ITEMS_AT_ONCE, ITEMS_AT_ONCE):
            for run in own:
                _, options, likelihood = RUNS[run]
                with RunBar() as bar:
                    report = evaluate(
                        model,
                        find_tasks(task),
                        folder_of(run),
                        options,
                        likelihood=LIKELIHOODS.parse(likelihood),
                        limit=min(upto, limit),
                        together=together,
                        observe=bar.follow,
                    )
                    (found,) = report.tasks
                    bar.print(f"{run}: {task}, {found.num_items} items: {found.scores.get(found.metric)}")
                keep(run, asdict(report))


def keep(run: str, report: Mapping[str, Any]) -> None:
    """Write what a run scored on one task into its folder, beside its other tasks."""
    path = folder_of(run) / "scores.json"
    known = json.loads(path.read_text(encoding="utf-8"))["tasks"] if path.exists() else []
    (task,) = report["tasks"]
    others = [each for each in known if each["task"] != task["task"]]
    whole = {**report, "tasks": sorted([*others, task], key=lambda each: RUNS[run][0].index(each["task"]))}
    path.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")


def report_of(run: str) -> dict[str, Any] | None:
    """Return what a run scored, and how many of its answers are those of mode ar; None where it was not made."""
    path = folder_of(run) / "scores.json"
    if not path.exists():
        return None
    report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return {
        **{key: report[key] for key in ("settings", "provenance", "tasks")},
        "equal_to_ar": equal_to_ar(run),
    }


def draw(runs: Mapping[str, Any], path: Path) -> None:
    """Draw the score of every written task against its tokens per forward, a line through the diffusion runs."""
    figure = new_figure(2)
    scores, times = figure.subplots(1, 2)
    for number, name in enumerate(ANSWERS):
        found = {
            run: task for run, report in runs.items() for task in report["tasks"] if task["task"] == name
        }
        places = {
            run: (task["tokens_per_forward"]["mean"], 100 * task["scores"][task["metric"]]["mean"])
            for run, task in found.items()
            if task["tokens_per_forward"] is not None
        }
        if not places:
            continue
        line = sorted(place for run, place in places.items() if run not in ("ar", "speculative"))
        colour = f"C{number}"
        scores.plot(*zip(*line, strict=True), "o-", color=colour, ms=3, lw=0.8) if line else None
        for run, marker in (("ar", "s"), ("speculative", "^")):
            if run in places:
                scores.plot(*places[run], marker, color=colour, ms=5)
        scores.plot([], [], color=colour, label=name.removeprefix("basic-skills-"))
    scores.set(
        xlabel="tokens per forward (square: ar, triangle: speculative, dots: diffusion)",
        ylabel="score, per cent",
    )
    scores.legend(frameon=False, fontsize=6)
    speeds = {run: speed for run, report in runs.items() if (speed := tokens_per_forward(report["tasks"]))}
    times.barh(list(speeds), list(speeds.values()))
    times.set(xlabel="tokens per forward, all written tasks")
    figure.savefig(path, dpi=130)


def tokens_per_forward(tasks: Sequence[Mapping[str, Any]]) -> float | None:
    """Return all tokens over all decode forwards of some tasks; None where nothing was written."""
    tokens, forwards = (sum(task[key] for task in tasks) for key in ("num_tokens", "num_decode_forwards"))
    return tokens / forwards if forwards else None


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--limit", type=int, default=500)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--runs", nargs="*", choices=RUNS, default=list(RUNS), help="none: only gather")
    parser.add_argument("--tasks", nargs="+", choices=(*CHOICES, *ANSWERS), help="default: all")
    arguments = parser.parse_args()
    if arguments.runs:
        measure(unmask.load(arguments.model), arguments.runs, arguments.tasks, arguments.limit)
    runs = {run: report for run in RUNS if (report := report_of(run)) is not None}
    record = {"provenance": provenance(torch.device("cpu"), torch.float32), "runs": runs}
    (HERE / "zero_shot.json").write_text(
        json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    draw(runs, HERE / "zero_shot.png")

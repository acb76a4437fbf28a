"""Score the default model on zero-shot tasks in every mode, and keep table and picture here.

    python benchmarks/zero_shot.py [--limit 500] [--model smollm2-135m] [--runs ar speculative] [--tasks piqa humaneval]

Choices are scored by the autoregressive likelihood, which the modes ar and speculative write, and by the diffusion
bound; answers are written in every mode. Speculation must write what mode ar does, and the report counts the answers
that are equal. Every run keeps its items in build/zero-shot, so Ctrl-C and the same command again go on, and a larger
--limit adds to a smaller one. Writes benchmarks/zero_shot.json, .png and .md; runs not named keep what is there.
"""

import argparse
import json
import sys
from pathlib import Path

import torch

from unmask.cli.main import main
from unmask.evaluation.figure import new_figure
from unmask.evaluation.provenance import provenance

HERE = Path(__file__).parent
FOLDER = HERE.parent / "build" / "zero-shot"
CHOICES = ("lambada", "hellaswag", "piqa", "arc-easy", "arc-challenge", "winogrande", "sciq", "boolq")
ANSWERS = (
    "lambada-written",
    "basic-skills-arithmetic-written",
    "basic-skills-common-knowledge-written",
    "basic-skills-string-operations-written",
    "humaneval",
    "mbpp",
    "humaneval-infilling",
    "gsm8k",
)
RUNS: dict[str, tuple[tuple[str, ...], list[str]]] = {
    "ar": ((*CHOICES, *ANSWERS), ["--mode", "ar"]),
    "speculative": (ANSWERS, ["--mode", "speculative"]),
    "one token a step": (ANSWERS, ["--mode", "diffusion", "--rule", "top-k:1"]),
    **{
        f"threshold {tau}": (ANSWERS, ["--mode", "diffusion", "--rule", f"threshold:{tau}"])
        for tau in ("0.99", "0.9", "0.7", "0.5")
    },
    # The bound depends on no rule. LAMBADA asks for the likeliest word, of which a bound says nothing.
    "bound": (CHOICES[1:], ["--mode", "diffusion", "--likelihood", "bound:8"]),
}


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


def report_of(run: str) -> dict[str, object] | None:
    path = folder_of(run) / "report.json"
    if not path.exists():
        return None
    report = json.loads(path.read_text(encoding="utf-8"))
    return {
        "settings": report["settings"],
        "provenance": report["provenance"],
        "tasks": report["tasks"],
        "equal_to_ar": equal_to_ar(run),
    }


def table(runs: dict[str, dict]) -> str:
    """Return a Markdown table: a row for each task, a column for each run, per cent with standard errors."""
    tasks = list(dict.fromkeys(task["task"] for run in runs.values() for task in run["tasks"]))
    lines = [
        "| " + " | ".join(["task", "items", *runs]) + " |",
        "| " + " | ".join(["---"] * (len(runs) + 2)) + " |",
    ]
    for name in tasks:
        found = {
            run: task for run, report in runs.items() for task in report["tasks"] if task["task"] == name
        }
        first = next(iter(found.values()))
        cells = [cell(found.get(run)) for run in runs]
        lines.append("| " + " | ".join([f"`{name}`", f"{first['num_items']:,}", *cells]) + " |")
    forwards = [speed(report["tasks"]) for report in runs.values()]
    lines.append("| " + " | ".join(["tokens per forward", "", *forwards]) + " |")
    return "\n".join(lines) + "\n"


def cell(task: dict | None) -> str:
    if task is None or task["metric"] not in task["scores"]:
        return ""
    score = task["scores"][task["metric"]]
    error = "" if score["standard_error"] is None else f" ± {100 * score['standard_error']:.1f}"
    return f"{100 * score['mean']:.1f}{error}"


def speed(tasks: list[dict]) -> str:
    tokens, forwards = (sum(task[key] for task in tasks) for key in ("num_tokens", "num_decode_forwards"))
    return f"{tokens / forwards:.2f}" if forwards else ""


def draw(runs: dict[str, dict], path: Path) -> None:
    """Draw the score of every written task against its tokens per forward, a line through the diffusion runs."""
    tasks = [
        name for name in ANSWERS if any(t["task"] == name for run in runs.values() for t in run["tasks"])
    ]
    figure = new_figure(2)
    scores, times = figure.subplots(1, 2)
    for number, name in enumerate(tasks):
        for run, report in runs.items():
            for task in report["tasks"]:
                if task["task"] == name and task["tokens_per_forward"] is not None:
                    score = task["scores"][task["metric"]]
                    scores.errorbar(
                        task["tokens_per_forward"]["mean"],
                        100 * score["mean"],
                        yerr=100 * (score["standard_error"] or 0),
                        color=f"C{number}",
                        marker={"ar": "s", "speculative": "^"}.get(run, "o"),
                        ms=4,
                        lw=0.7,
                    )
        scores.plot([], [], color=f"C{number}", label=name)
    scores.set(xlabel="tokens per forward (square: ar, triangle: speculative)", ylabel="score, per cent")
    scores.legend(frameon=False, fontsize=6)
    names = [run for run in runs if speed(runs[run]["tasks"])]
    times.barh(names, [float(speed(runs[run]["tasks"])) for run in names])
    times.set(xlabel="tokens per forward, all tasks")
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--limit", type=int, default=500)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=list(RUNS))
    parser.add_argument("--tasks", nargs="+", help="of each run's tasks, those (default: all)")
    arguments = parser.parse_args()
    for run in arguments.runs:
        tasks, options = RUNS[run]
        tasks = tuple(task for task in tasks if arguments.tasks is None or task in arguments.tasks)
        if tasks:
            print(f"== {run}", file=sys.stderr)
            asked = ["--tasks", ",".join(tasks), "--limit", str(arguments.limit), *options]
            status = main(["eval", arguments.model, "--out", str(folder_of(run)), *asked])
            if status:
                sys.exit(status)
    runs = {run: report for run in RUNS if (report := report_of(run)) is not None}
    record = {
        "provenance": provenance(torch.device("cpu"), torch.float32),
        "limit": arguments.limit,
        "runs": runs,
    }
    (HERE / "zero_shot.json").write_text(
        json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    (HERE / "zero_shot.md").write_text(table(runs), encoding="utf-8")
    draw(runs, HERE / "zero_shot.png")
    print(table(runs))

"""``unmask eval``: what a model scores on zero-shot tasks, and how probable it finds a text."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from unmask.cli.arguments import (
    DEFAULT_MODEL,
    AdapterOption,
    BlockLengthOption,
    DebugFlag,
    DeviceOption,
    DtypeOption,
    JsonFlag,
    NumPredraftsOption,
    NumStepsOption,
    OfflineFlag,
    OptionalModel,
    QuantizeOption,
    RuleOption,
    SamplerOption,
    SeedOption,
    TemperatureOption,
    TopKOption,
    TopPOption,
    TreeSizeOption,
)
from unmask.cli.output import print_json, print_note
from unmask.cli.request import decoding_options, own_mode
from unmask.cli.run_bar import RunBar
from unmask.cli.session import open_model
from unmask.cli.tables import add_row, new_table, print_tables, with_error
from unmask.cli.text_likelihood import measure_texts, read_files
from unmask.decoding.mode import ENGINE_MODES
from unmask.errors import UsageError

if TYPE_CHECKING:
    from unmask.evaluation.tasks.task import Task
    from unmask.evaluation.zero_shot import EvaluationReport


def eval(
    model: OptionalModel = DEFAULT_MODEL,
    *,
    tasks: Annotated[
        str | None,
        typer.Option(
            help="What to ask, parted by commas; * stands for anything: piqa,basic-skills-*.",
            metavar="TASK,TASK",
            show_default=False,
        ),
    ] = None,
    text: Annotated[
        list[Path] | None,
        typer.Option(
            help="Instead of tasks: how probable this text is, in nats per token and bits per byte. .txt, .txt.xz or "
            ".jsonl; may be repeated.",
            metavar="FILE",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder of items and report; what was asked there is not asked again. Without it the likelihood of a "
            "text is printed only.",
            metavar="FOLDER",
            show_default=False,
        ),
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="List the tasks.")] = False,
    limit: Annotated[
        int | None, typer.Option(help="The first N items of each task or windows of each text.", metavar="N")
    ] = None,
    window: Annotated[
        int | None,
        typer.Option(
            help="Tokens of a text that are measured with one another in sight (default: 256, or what the model "
            "holds).",
            metavar="N",
            show_default=False,
        ),
    ] = None,
    mode: Annotated[
        str | None,
        typer.Option(
            help="How to write: ar, diffusion, speculative (fewer forwards, the text of ar), or auto: ar or "
            "speculative, as the engine finds faster while it runs; the model's own way unless given.",
            show_default=False,
        ),
    ] = None,
    rule: RuleOption = None,
    sampler: SamplerOption = None,
    block_length: BlockLengthOption = None,
    num_steps: NumStepsOption = None,
    tree_size: TreeSizeOption = None,
    num_predrafts: NumPredraftsOption = None,
    temperature: TemperatureOption = 0.0,
    top_p: TopPOption = 1.0,
    top_k: TopKOption = 0,
    seed: SeedOption = 0,
    likelihood: Annotated[
        str | None,
        typer.Option(
            help="How choices and texts are scored: ar (exact, the default in modes ar and speculative), bound:32 "
            "(samples of the diffusion bound, the default in mode diffusion), duel (exact under the rule), flow:16,2 "
            "(steps and samples of the probability flow of a continuous model).",
            metavar="KIND",
            show_default=False,
        ),
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Show published scores beside these (docs/published.md).")
    ] = False,
    adapter: AdapterOption = None,
    dtype: DtypeOption = "float32",
    quantize: QuantizeOption = None,
    device: DeviceOption = "cpu",
    offline: OfflineFlag = False,
    json: JsonFlag = False,
    debug: DebugFlag = False,
) -> None:
    """Measure a model on zero-shot tasks, or how probable it finds a text.

    Stop with Ctrl-C and give the same command again to go on.
    """
    from unmask.evaluation.tasks import TASKS, find_tasks

    if list_:
        _print_tasks({name: TASKS.get(name) for name in TASKS.names()}, json=json)
        return
    _check_what_to_measure(tasks, text, out, window)
    if compare and (json or text):
        raise UsageError(
            "--compare is for tables of tasks, and there is none", "leave out --compare, or --json and --text"
        )
    unused = {
        "--rule": rule is not None and likelihood != "duel",
        "--steps": num_steps is not None and likelihood != "duel",
        "--sampler": sampler is not None,
        "--tree-size": tree_size is not None,
        "--predrafts": num_predrafts is not None,
        "--temperature": temperature != 0,
        "--top-p": top_p != 1,
        "--top-k": top_k != 0,
    }
    if text and (name := next((name for name, given in unused.items() if given), None)):
        raise UsageError(f"{name} changes nothing about the likelihood of a text", "leave it out")
    chosen = find_tasks(tasks) if tasks else {}
    texts = read_files(text or [])
    options = decoding_options(
        mode=mode or own_mode(model),
        rule=rule,
        sampler=sampler,
        block_length=block_length,
        num_steps=num_steps,
        tree_size=tree_size,
        num_predrafts=num_predrafts,
        max_tokens=1,  # every task has its own
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        seed=seed,
        modes=ENGINE_MODES,
    )
    if mode == "auto" and temperature:
        raise UsageError(
            f"--temperature {temperature:g} with --mode auto: what is drawn would depend on the planner's choices",
            "leave one of them out, or give --mode speculative",
        )
    from unmask.evaluation.model_scorer import LIKELIHOODS

    kind = None if likelihood is None else LIKELIHOODS.parse(likelihood)
    opened = open_model(
        model, adapter=adapter, dtype=dtype, device=device, offline=offline, quantize=quantize
    )
    if texts:
        measure_texts(opened, texts, out, options, likelihood=kind, window=window, limit=limit, json=json)
        return
    assert out is not None  # checked above
    from unmask.engine.side_by_side import side_by_side
    from unmask.evaluation.tasks.data import TaskData
    from unmask.evaluation.zero_shot import evaluate
    from unmask.model.store import cache_directory

    if any(task.runs_programs for task in chosen.values()):
        _warn_of_weak_confinement()
    with RunBar() as bar:
        data = TaskData(cache_directory(), offline=offline, progress=bar.print)
        report = evaluate(
            opened,
            chosen,
            out,
            options,
            data=data,
            likelihood=kind,
            limit=limit,
            together=side_by_side,
            observe=bar.follow,
        )
    if json:
        print_json(asdict(report))
        return
    _print_report(report)
    if compare:
        _print_published([task.task for task in report.tasks])
    print_note(f"every item, and the report: {out}")


def _check_what_to_measure(
    tasks: str | None, text: list[Path] | None, out: Path | None, window: int | None
) -> None:
    if text:
        if tasks is not None:
            raise UsageError("--tasks and --text were both given", "measure one after the other")
        return
    if tasks is None or out is None:
        raise UsageError(
            f"{'--tasks' if tasks is None else '--out'} is missing",
            "unmask eval --list lists the tasks; --text FILE measures a text instead",
        )
    if window is not None:
        raise UsageError("--window is for texts, and --tasks was given", "leave it out")


def _warn_of_weak_confinement() -> None:
    from unmask.evaluation.tasks.execution import KERNEL_LAYERS, confinement_layers

    missing = [layer for layer in KERNEL_LAYERS if layer not in confinement_layers()]
    if missing:
        print_note(
            f"programs that the model writes will run here, without {' and '.join(missing)}, which this system lacks; "
            "docs/evaluation.md says what that leaves open"
        )


def _print_tasks(tasks: "dict[str, Task]", *, json: bool) -> None:
    rows = [
        {
            "task": name,
            "kind": task.kind,
            "items": task.num_items,
            "split": task.split,
            "shots": task.shots,
            "metric": task.metric,
            "description": task.description,
        }
        for name, task in tasks.items()
    ]
    if json:
        print_json(rows)
        return
    table = Table(box=None, pad_edge=False)
    headings = ("task", "items", "kind", "metric", "description")
    for heading in headings:
        table.add_column(heading, no_wrap=heading == "task")
    for row in rows:
        table.add_row(*(Text(str(row[heading])) for heading in headings))
    print_tables(table)


def _print_report(report: "EvaluationReport") -> None:
    table = Table(box=None, pad_edge=False)
    for heading in ("task", "items", "metric", "score", "forwards", "tokens/forward"):
        table.add_column(heading, no_wrap=True)
    for task in report.tasks:
        items = f"{task.num_items}" + ("" if task.num_items == task.of_items else f" of {task.of_items}")
        per_forward = task.tokens_per_forward
        speed = ("", "") if per_forward is None else (f"{task.num_forwards}", with_error(per_forward))
        for index, (metric, score) in enumerate(task.scores.items()):
            name, count, *rest = (task.task, items, *speed) if index == 0 else ("",) * 4
            style = "bold" if metric == task.metric else ""
            table.add_row(*(Text(cell, style) for cell in (name, count, metric, with_error(score), *rest)))
    print_tables(table)


def _print_published(tasks: "list[str]") -> None:
    from unmask.evaluation.published import published_for

    table = new_table("published, in per cent; each by its source's own prompts and metrics", "model", "mode")
    for heading in (*tasks, "tokens/forward", "source"):
        table.add_column(heading, justify="left" if heading == "source" else "right")
    for entry in published_for(tasks):
        scores = (f"{entry.scores[task]:.1f}" if task in entry.scores else "" for task in tasks)
        speed = "" if entry.tokens_per_forward is None else f"{entry.tokens_per_forward:g}"
        add_row(table, entry.model, entry.mode, *scores, speed, entry.source)
    print_tables(table)

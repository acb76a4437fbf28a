"""``unmask bench``: how fast this machine writes, beside other programs and with many requests at once."""

import json as json_format
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unmask.cli.arguments import (
    DEFAULT_MODEL,
    AdapterOption,
    DebugFlag,
    JsonFlag,
    OfflineFlag,
    OptionalModel,
)
from unmask.cli.number_list import read_numbers
from unmask.cli.output import print_json
from unmask.cli.run_bar import RunBar
from unmask.cli.session import open_model, settle_threads
from unmask.cli.speed_tables import speed_tables
from unmask.cli.tables import drawn, print_report
from unmask.errors import FailureError, UsageError

if TYPE_CHECKING:
    from unmask.benchmark.latency import LatencyReport
    from unmask.benchmark.throughput import ThroughputReport
    from unmask.decoding.language_model import LanguageModel
    from unmask.decoding.mode import Mode
    from unmask.training.run_folder import RunFolder

_KINDS = ("latency", "throughput")
_FORMATS = {"float32": None, "int8": "int8"}


def bench(
    kind: Annotated[
        str,
        typer.Argument(
            metavar="latency|throughput",
            help="latency: one request, beside other programs; throughput: many requests at once.",
        ),
    ],
    model: OptionalModel = DEFAULT_MODEL,
    *,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Where the record goes, a .json file; the picture lies beside it (default: bench-KIND.json).",
            metavar="FILE",
            show_default=False,
        ),
    ] = None,
    modes: Annotated[
        str, typer.Option(help="Modes of this program, parted by commas.", metavar="MODE,MODE")
    ] = "ar,diffusion,speculative,auto",
    formats: Annotated[
        str, typer.Option(help="Number formats, parted by commas: float32, int8.", metavar="FORMAT,FORMAT")
    ] = "float32,int8",
    against: Annotated[
        str | None,
        typer.Option(
            help="latency: other programs, parted by commas: transformers, llama.cpp; '' for none (default: those "
            "that are installed and can read the model).",
            metavar="NAME,NAME",
            show_default=False,
        ),
    ] = None,
    gguf: Annotated[
        Path | None,
        typer.Option(
            help="latency: what llama.cpp reads (default: the file that the model comes in).",
            metavar="FILE",
            show_default=False,
        ),
    ] = None,
    prompts: Annotated[
        int | None,
        typer.Option(
            help="Prompts of each of the six kinds, 40 at most (default: 1 for latency; for throughput as many as the "
            "largest --concurrency takes, so that no text comes twice).",
            metavar="N",
            show_default=False,
        ),
    ] = None,
    concurrency: Annotated[
        str | None,
        typer.Option(
            help="throughput: requests at once, parted by commas (default: 1,2,4,8,16,32).",
            metavar="N,N",
            show_default=False,
        ),
    ] = None,
    max_tokens: Annotated[
        int, typer.Option(help="Tokens to write after each prompt; no stop token ends them.", metavar="N")
    ] = 256,
    rounds: Annotated[int, typer.Option(help="How often everything is run; medians count.", metavar="N")] = 3,
    adapter: AdapterOption = None,
    offline: OfflineFlag = False,
    json: JsonFlag = False,
    debug: DebugFlag = False,
) -> None:
    """Measure tokens per second on this machine's CPU: all ways to write take turns, greedily, on the same prompts.

    Ctrl-C loses nothing that is measured: the same command goes on where it was stopped.
    """
    from unmask.decoding.mode import ENGINE_MODES
    from unmask.training.run_folder import RunFolder

    if kind not in _KINDS:
        raise UsageError(f"unknown benchmark {kind!r}", f"choose from {', '.join(_KINDS)}")
    if kind == "latency" and concurrency is not None:
        raise UsageError("--concurrency belongs to throughput", "leave it out")
    if kind == "throughput" and (against is not None or gguf is not None):
        raise UsageError("--against and --gguf belong to latency", "leave them out")
    rivals = None if against is None else _split(against)
    if gguf is not None:
        _check_gguf(gguf, rivals)
    if rounds < 1 or max_tokens < 2:
        raise UsageError(f"--rounds {rounds} --max-tokens {max_tokens}: at least 1 round of 2 tokens")
    out = out or Path(f"bench-{kind}.json")
    picture, place = out.with_suffix(".png"), RunFolder(out.with_suffix(".runs"), "speed benchmark")
    chosen = _chosen(modes, "--modes", ENGINE_MODES)
    models = [
        open_model(
            model,
            adapter=adapter,
            dtype="float32",
            device="cpu",
            offline=offline,
            quantize=_FORMATS[number_format],
        )
        for number_format in _chosen(formats, "--formats", tuple(_FORMATS))
    ]
    settle_threads("cpu")
    with RunBar() as bar:
        if kind == "latency":
            wanted = 1 if prompts is None else prompts
            report: LatencyReport | ThroughputReport = _latency(
                models, chosen, rivals, gguf, place, bar, prompts=wanted, max_tokens=max_tokens, rounds=rounds
            )
        else:
            sizes = read_numbers(concurrency or "1,2,4,8,16,32", "--concurrency", int)
            wanted = _prompts_for(max(sizes)) if prompts is None else prompts
            report = _throughput(
                models, chosen, sizes, place, bar, prompts=wanted, max_tokens=max_tokens, rounds=rounds
            )
        record = {"kind": kind, **asdict(report)}
        try:
            out.write_text(json_format.dumps(record, indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise FailureError(f"cannot write {out}: {error.strerror}", "check --out") from error
        place.discard(place.path)
        pictures = drawn(lambda: [_draw(report, picture)], bar)
    if json:
        print_json(record)
        return
    print_report(speed_tables(report), [out, *pictures])


def _check_gguf(gguf: Path, rivals: Sequence[str] | None) -> None:
    """Raise UsageError for a file that is not there, or that nobody would read."""
    from unmask.benchmark.rivals import installed_rivals

    if "llama.cpp" not in (installed_rivals() if rivals is None else rivals):
        missing = "is not installed" if rivals is None else "is not among --against"
        raise UsageError(f"--gguf {gguf}: only llama.cpp reads it, which {missing}", "leave --gguf out")
    if not gguf.is_file():
        raise UsageError(f"--gguf {gguf} is no file", "check its path")


def _latency(
    models: "Sequence[LanguageModel]",
    modes: "Sequence[Mode]",
    rivals: Sequence[str] | None,
    gguf: Path | None,
    place: "RunFolder",
    bar: RunBar,
    *,
    prompts: int,
    max_tokens: int,
    rounds: int,
) -> "LatencyReport":
    from unmask.benchmark.contender import Run, conditions_of, number_format, own_contenders
    from unmask.benchmark.kept_runs import kept_runs
    from unmask.benchmark.latency import LatencyConfig, LatencyReport, run_latency, speeds_of
    from unmask.benchmark.rivals import installed_rivals, open_rivals, rivals_for
    from unmask.evaluation.prompts import first_prompts

    config = LatencyConfig(prompts, max_tokens, rounds, conditions_of(models[0], modes, max_tokens))
    asked = [(prompt, models[0].encode(prompt.text)) for prompt in first_prompts(prompts)]
    with ExitStack() as stack:
        bar.show("loading", 0, None, "")
        names = rivals_for(models[0], gguf) if rivals is None else rivals
        if rivals is None and "llama.cpp" in installed_rivals() and "llama.cpp" not in names:
            bar.print("llama.cpp takes no part: the model was read from no GGUF file (--gguf names one)")
        others = stack.enter_context(open_rivals(names, models[0], gguf))
        own = own_contenders(models, modes, lambda said: bar.show("loading", 0, None, said))
        contenders = [*others, *own]
        bar.show("loading", 1, 1, "")
        present = [contender.name for contender in contenders]
        ledger = stack.enter_context(kept_runs(place, Run, models[0], config, present))
        runs = run_latency(contenders, asked, config, ledger, bar.follow)
    first = own[0].name
    references = dict.fromkeys(runs, first)
    for model in models:
        for mode in modes:
            references[f"{mode} {number_format(model)}"] = f"{modes[0]} {number_format(model)}"
    baseline = contenders[0].name
    speeds = speeds_of(runs, baseline=baseline, references=references)
    numbers = tuple(prompt.number for prompt, _ in asked)
    return LatencyReport(config, *_described(models[0]), numbers, baseline, speeds, runs)


def _throughput(
    models: "Sequence[LanguageModel]",
    modes: "Sequence[Mode]",
    sizes: tuple[int, ...],
    place: "RunFolder",
    bar: RunBar,
    *,
    prompts: int,
    max_tokens: int,
    rounds: int,
) -> "ThroughputReport":
    from unmask.benchmark.contender import conditions_of, number_format
    from unmask.benchmark.kept_runs import kept_runs
    from unmask.benchmark.throughput import (
        Crowd,
        ThroughputConfig,
        ThroughputReport,
        balances_of,
        points_of,
        run_throughput,
    )
    from unmask.evaluation.prompts import first_prompts

    conditions = conditions_of(models[0], modes, max_tokens)
    config = ThroughputConfig(sizes, tuple(modes), max_tokens, rounds, prompts, conditions)
    chosen = first_prompts(prompts)
    asked = [models[0].encode(prompt.text) for prompt in chosen]
    formats = [number_format(model) for model in models]
    with kept_runs(place, Crowd, models[0], config, formats) as ledger:
        crowds = run_throughput(models, asked, config, ledger, bar.follow)
    points = points_of(crowds)
    numbers = tuple(prompt.number for prompt in chosen)
    return ThroughputReport(
        config, *_described(models[0]), numbers, points, balances_of(points), tuple(crowds)
    )


def _prompts_for(num_requests: int) -> int:
    """Return how many prompts of each kind so many requests take, all of them where there are not enough."""
    from unmask.evaluation.prompts import all_prompts, kinds

    return min(-(-num_requests // len(kinds())), len(all_prompts()) // len(kinds()))


def _described(model: "LanguageModel") -> tuple[dict[str, object], dict[str, object]]:
    """Return the machine, and the model by name and fingerprint."""
    from unmask.evaluation.fingerprint import described
    from unmask.evaluation.provenance import provenance_of

    return provenance_of(model), described(model)


def _draw(report: "LatencyReport | ThroughputReport", path: Path) -> Path:
    from unmask.benchmark.latency import LatencyReport
    from unmask.benchmark.speed_pictures import draw_latency, draw_throughput

    return draw_latency(report, path) if isinstance(report, LatencyReport) else draw_throughput(report, path)


def _split(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


def _chosen(text: str, option: str, known: tuple[str, ...]) -> "tuple[Any, ...]":
    """Read names parted by commas; UsageError for an unknown one, or for none."""
    names = _split(text)
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise UsageError(f"{option} {text!r}: choose from {', '.join(known)}")
    return names

"""What fewer forwards cost: task scores, agreement and text quality against tokens per forward, way by way."""

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from unmask.decoding.language_model import LanguageModel
from unmask.errors import UsageError
from unmask.evaluation.agreement import Agreement, measure_agreement
from unmask.evaluation.average import Average, average
from unmask.evaluation.fingerprint import backbone_fingerprint, described
from unmask.evaluation.frontier_config import FrontierConfig
from unmask.evaluation.frontier_point import FrontierPoint, TaskScore
from unmask.evaluation.ledger import Ledger, Observer, StageProgress
from unmask.evaluation.length_times import LengthTime, length_ways, time_lengths
from unmask.evaluation.matched_entropy import Matched, match_entropy, reference_of
from unmask.evaluation.prompts import Prompt, first_prompts, prompts_digest
from unmask.evaluation.provenance import provenance_of, timing_conditions
from unmask.evaluation.tasks.data import TaskData
from unmask.evaluation.tasks.task import Task
from unmask.evaluation.text_quality import Judged, TextJudge, TextQuality
from unmask.evaluation.together import Together, in_turn
from unmask.evaluation.ways import SERIAL_RULE, Way, Writing, takes_rules, write
from unmask.evaluation.zero_shot import evaluate
from unmask.training.run_folder import RunFolder

REPORT_FILE = "frontier.json"
TABLE_FILE = "frontier.csv"
WRITINGS_FILE = "writings.jsonl"
TIMES_FILE = "times.jsonl"
TASKS_FOLDER = "tasks"


@dataclass(frozen=True)
class FrontierRecord:
    """One prompt in one way, and what the judge says of the text."""

    number: int
    way: str
    writing: Writing
    judged: Judged | None


@dataclass(frozen=True)
class Frontier:
    """The report.

    `model`, `judge`: what they are called, what their cards decide, and the SHA-256 of the prompts as each reads them;
    and whether the judge is the very model that wrote, with whatever adapter. `entropy`: what `matched` compares at,
    the entropy of the way `reference`: mode ar at temperature 1, or of a model without that mode the first way.
    """

    config: FrontierConfig
    provenance: Mapping[str, object]
    model: Mapping[str, object]
    judge: Mapping[str, object]
    points: tuple[FrontierPoint, ...]
    reference: str | None
    entropy: float | None
    matched: tuple[Matched, ...]
    times: tuple[LengthTime, ...]

    @property
    def judges_itself(self) -> bool:
        """Whether bits per byte say what the model expects, not how good a text is."""
        return bool(self.judge["is_the_model_itself"])


def measure_frontier(
    model: LanguageModel,
    judge: LanguageModel,
    config: FrontierConfig,
    folder: Path,
    *,
    tasks: Mapping[str, Task],
    data: TaskData | None = None,
    together: Together = in_turn,
    observe: Observer = lambda progress: None,
) -> Frontier:
    """Write the prompts and answer the tasks in every way; write `REPORT_FILE` and `TABLE_FILE` into the folder.

    Every text is written down as soon as it is judged, so a run that was cut off goes on, and more prompts add to
    fewer. Raise UsageError for a folder that holds other settings, other prompts or, with lengths, the times of another
    machine, and what model and judge raise.
    """
    ways, reader = config.ways(model), TextJudge(judge)
    written_by, judged_by = ({**described(one), "prompts": prompts_digest(one)} for one in (model, judge))
    place = RunFolder(folder, "frontier")
    settings = {**asdict(config), "model": written_by, "judge": judged_by, "tasks": list(tasks)}
    del settings["num_prompts"]
    if config.lengths:
        settings |= timing_conditions(model)
    place.claim_settings(settings)

    references = _references(model, config)
    names = {way.name: way for way in (*ways, *references.values())}
    jobs = [(prompt, way) for prompt in first_prompts(config.num_prompts) for way in names.values()]
    ledger = Ledger(place, WRITINGS_FILE, FrontierRecord)
    while (done := len(ledger.records)) < len(jobs):
        observe(StageProgress("texts", done, len(jobs)))
        prompt = jobs[done][0]
        missing = [way for other, way in jobs[done:] if other == prompt]
        for record in _write(model, reader, config, prompt, missing, together):
            ledger.add(record)
    observe(StageProgress("texts", len(jobs), len(jobs)))
    records = ledger.records[: len(jobs)]

    scores = {
        way.name: _task_scores(model, way, tasks, config, folder, data, together, observe)
        for way in ways
        if tasks and way.temperature == 0
    }
    points = tuple(_point(way, records, references, scores.get(way.name, ())) for way in ways)
    reference, entropy = reference_of(points)
    report = Frontier(
        config,
        provenance_of(model),
        written_by,
        {**judged_by, "is_the_model_itself": backbone_fingerprint(judge) == backbone_fingerprint(model)},
        points,
        reference,
        entropy,
        () if entropy is None else match_entropy(points, entropy),
        _times(model, config, place, observe),
    )
    place.write_json(REPORT_FILE, asdict(report))
    with place.saving(), place.replacing(TABLE_FILE) as partial, partial.open("w", newline="") as file:
        csv.writer(file).writerows(rows(report))
    return report


def _references(model: LanguageModel, config: FrontierConfig) -> dict[str, Way]:
    """Return what texts are compared with, as far as the model has it."""
    denoiser = model.denoiser
    found = {"ar": Way("ar")} if denoiser.predicts_next else {}
    if takes_rules(denoiser):
        found["serial"] = Way("diffusion", rule=SERIAL_RULE, block_length=config.block_length)
    return found


def _write(
    model: LanguageModel,
    judge: TextJudge,
    config: FrontierConfig,
    prompt: Prompt,
    ways: Sequence[Way],
    together: Together,
) -> Iterator[FrontierRecord]:
    """Write a prompt in some ways, and let the judge read every text once, whoever wrote it."""
    room = model.denoiser.transformer.config.max_positions - config.max_tokens
    if room < 1:
        raise UsageError(f"max_tokens={config.max_tokens} leaves the model's window no room for a prompt")
    prompt_ids = model.encode(prompt.text)[-room:]
    written = write(
        model, prompt_ids, ways, max_tokens=config.max_tokens, seed=prompt.number, together=together
    )
    judged: dict[str, Judged | None] = {}
    for way, writing in zip(ways, written, strict=True):
        if writing.text not in judged:
            judged[writing.text] = judge(prompt.text, writing.text)
        yield FrontierRecord(prompt.number, way.name, writing, judged[writing.text])


def _task_scores(
    model: LanguageModel,
    way: Way,
    tasks: Mapping[str, Task],
    config: FrontierConfig,
    folder: Path,
    data: TaskData | None,
    together: Together,
    observe: Observer,
) -> tuple[TaskScore, ...]:
    def show(progress: StageProgress) -> None:
        observe(replace(progress, stage=f"{progress.stage}, {way.name}"))

    place = folder / TASKS_FOLDER / way.name.replace(":", " ").replace(", ", " ").replace(" ", "-")
    options = way.options(max_tokens=1)  # every task has its own length
    report = evaluate(
        model, tasks, place, options, data=data, limit=config.limit, together=together, observe=show
    )
    return tuple(
        TaskScore(task.task, task.metric, task.scores[task.metric], task.tokens_per_forward)
        for task in report.tasks
        if task.metric in task.scores
    )


def _point(
    way: Way,
    records: Sequence[FrontierRecord],
    references: Mapping[str, Way],
    tasks: tuple[TaskScore, ...],
) -> FrontierPoint:
    own = [record for record in records if record.way == way.name]
    texts = [record.writing.token_ids for record in own]
    forwards = [record.writing.num_decode_forwards for record in own]

    def agreement(name: str) -> Agreement | None:
        if name not in references:
            return None
        truths = [r.writing.token_ids for r in records if r.way == references[name].name]
        return measure_agreement(texts, truths)

    return FrontierPoint(
        way,
        way.name,
        average([len(text) for text in texts], forwards),
        average(forwards, [1.0] * len(own)),
        TextQuality.of(texts, [record.judged for record in own]),
        agreement("ar"),
        agreement("serial"),
        tasks,
    )


def _times(
    model: LanguageModel, config: FrontierConfig, place: RunFolder, observe: Observer
) -> tuple[LengthTime, ...]:
    """Time texts of every length, each in every way, prompt after prompt."""
    if not config.lengths:
        return ()
    ledger, jobs = Ledger(place, TIMES_FILE, LengthTime), length_ways(model, config.lengths)
    return tuple(ledger.fill(jobs, lambda job: time_lengths(model, job), "lengths", observe))


def rows(report: Frontier) -> list[list[object]]:
    """Return the points as rows of a table, headings first; task scores, if any, in columns of their own."""
    tasks = list(dict.fromkeys(score.task for point in report.points for score in point.tasks))
    bits = "own_bits_per_byte" if report.judges_itself else "bits_per_byte"
    headings = ["way", "tokens_per_forward", "forwards_per_text", bits, "entropy"]
    headings += ["distinct_1", "distinct_2", "distinct_3", "diversity", "as_ar", "as_serial", *tasks]
    table: list[list[object]] = [[*headings]]
    for point in report.points:
        scores = {score.task: score.score.mean for score in point.tasks}
        quality = point.quality
        table.append(
            [
                point.name,
                *map(_mean, (point.tokens_per_forward, point.forwards_per_text)),
                *map(_mean, (quality.bits_per_byte, quality.entropy)),
                *quality.distinct,
                quality.diversity,
                *(None if one is None else one.overall.mean for one in (point.as_ar, point.as_serial)),
                *(scores.get(task) for task in tasks),
            ]
        )
    return table


def _mean(value: Average | None) -> float | None:
    return None if value is None else value.mean

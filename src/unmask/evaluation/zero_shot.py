"""A model on zero-shot tasks: item after item into a ledger, from there into a report."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path

from unmask.decoding.language_model import LanguageModel
from unmask.decoding.options import Options
from unmask.errors import UsageError
from unmask.evaluation.continuations import LikelihoodKind
from unmask.evaluation.fingerprint import adapter_name, fingerprint
from unmask.evaluation.item_record import ItemRecord, digest_of
from unmask.evaluation.ledger import Ledger, Observer, StageProgress
from unmask.evaluation.model_scorer import ModelScorer, default_likelihood
from unmask.evaluation.provenance import provenance_of
from unmask.evaluation.scoring import Answer, GenerationRequest, LikelihoodRequest
from unmask.evaluation.task_report import TaskReport
from unmask.evaluation.tasks.data import TaskData
from unmask.evaluation.tasks.execution import confinement_layers
from unmask.evaluation.tasks.item import Item
from unmask.evaluation.tasks.task import Task
from unmask.evaluation.together import Together, in_turn
from unmask.training.run_folder import RunFolder

ITEMS_FILE = "items.jsonl"
REPORT_FILE = "report.json"

_ITEMS_AT_ONCE = 32
"""Items whose continuations are packed together; what an interruption loses at most of these."""


@dataclass(frozen=True)
class EvaluationReport:
    """All scores of one model in one mode. `confinement`: what locked model-written programs in, where any were run."""

    settings: Mapping[str, object]
    provenance: Mapping[str, object]
    tasks: tuple[TaskReport, ...]
    confinement: tuple[str, ...] = ()


def evaluate(
    model: LanguageModel,
    tasks: Mapping[str, Task],
    folder: Path,
    options: Options,
    *,
    data: TaskData | None = None,
    likelihood: LikelihoodKind | None = None,
    limit: int | None = None,
    together: Together = in_turn,
    observe: Observer = lambda progress: None,
) -> EvaluationReport:
    """Ask a model all items of the tasks, or the first `limit` of each, and write `REPORT_FILE` into the folder.

    Every item is written to the folder as soon as it is scored; those that are there already are not asked again, so a
    run that was cut off goes on, and a larger limit adds to a smaller one. `options`, `likelihood` and `together` are
    as in `ModelScorer`; `data` is in the cache directory unless given. Raise UsageError for a folder that holds other
    settings, and what the data and the model raise.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"limit={limit} must be at least 1")
    data = data or TaskData()
    kind = likelihood or default_likelihood(options.mode)
    scorer = ModelScorer(model, options, kind, together=together)
    settings = {
        "model": model.checkpoint.card.name,
        "adapter": adapter_name(model),
        "fingerprint": fingerprint(model),
        **scorer.settings,
    }
    place = RunFolder(folder, "zero-shot evaluation")
    place.claim_settings(settings)
    ledger = Ledger(place, ITEMS_FILE, ItemRecord)
    known = {(record.task, record.item, record.digest): record for record in ledger.records}
    reports = []
    for name, task in tasks.items():
        items = list(islice(task.load(data), limit))
        keys = [(name, item.id, digest_of(item)) for item in items]
        missing = [item for item, key in zip(items, keys, strict=True) if key not in known]
        done = len(items) - len(missing)
        observe(StageProgress(name, done, len(items)))
        for batch in _batches(missing):
            for record in _ask(scorer, name, batch):
                ledger.add(record)
                known[record.task, record.item, record.digest] = record
                done += 1
                observe(StageProgress(name, done, len(items)))
        reports.append(TaskReport.of(name, task, [known[key] for key in keys]))
    runs_programs = any(task.runs_programs for task in tasks.values())
    report = EvaluationReport(
        settings,
        provenance_of(model),
        tuple(reports),
        confinement_layers() if runs_programs else (),
    )
    place.write_json(REPORT_FILE, asdict(report))
    return report


def _batches(items: Sequence[Item]) -> Iterator[Sequence[Item]]:
    """Yield items to ask together: some whose continuations are scored, all that want something written."""
    for writes, run in groupby(items, key=_writes):
        some = list(run)
        size = len(some) if writes else _ITEMS_AT_ONCE
        for begin in range(0, len(some), size):
            yield some[begin : begin + size]


def _writes(item: Item) -> bool:
    return any(isinstance(request, GenerationRequest) for request in item.requests)


def _ask(scorer: ModelScorer, task: str, items: Sequence[Item]) -> Iterator[ItemRecord]:
    """Put the requests of all items to the model together; yield the record of each as soon as it is answered.

    Its seconds are its share of those since the records before it.
    """
    begin = time.perf_counter()
    answers: list[dict[int, Answer]] = [{} for _ in items]
    likelihoods: list[tuple[int, int, LikelihoodRequest]] = []
    generations: list[tuple[int, int, GenerationRequest]] = []
    for number, item in enumerate(items):
        for place, request in enumerate(item.requests):
            if isinstance(request, LikelihoodRequest):
                likelihoods.append((number, place, request))
            else:
                generations.append((number, place, request))

    def record(number: int, seconds: float) -> ItemRecord:
        own = [answer for _, answer in sorted(answers[number].items(), key=itemgetter(0))]
        return ItemRecord.of(task, items[number], own, seconds)

    found = scorer.loglikelihood([request for *_, request in likelihoods])
    for (number, place, _), likelihood in zip(likelihoods, found, strict=True):
        answers[number][place] = likelihood
    ready = [number for number, item in enumerate(items) if len(answers[number]) == len(item.requests)]
    seconds = time.perf_counter() - begin
    yield from (record(number, seconds / len(ready)) for number in ready)
    begin = time.perf_counter()
    for index, text in scorer.written([request for *_, request in generations]):
        number, place, _ = generations[index]
        answers[number][place] = text
        if len(answers[number]) == len(items[number].requests):
            yield record(number, time.perf_counter() - begin)
            begin = time.perf_counter()

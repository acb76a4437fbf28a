"""A model on zero-shot tasks: item after item into a ledger, from there into a report."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

from unmask.decoding.language_model import LanguageModel
from unmask.decoding.options import Options
from unmask.errors import UsageError
from unmask.evaluation.continuations import LikelihoodKind
from unmask.evaluation.fingerprint import fingerprint
from unmask.evaluation.item_record import ItemRecord, digest_of
from unmask.evaluation.ledger import Ledger, Observer, StageProgress
from unmask.evaluation.model_scorer import ModelScorer, default_likelihood
from unmask.evaluation.provenance import provenance_of
from unmask.evaluation.scoring import Answer, GenerationRequest, LikelihoodRequest, Scorer
from unmask.evaluation.task_report import TaskReport
from unmask.evaluation.tasks.data import TaskData
from unmask.evaluation.tasks.execution import confinement_layers
from unmask.evaluation.tasks.item import Item
from unmask.evaluation.tasks.task import Task
from unmask.training.run_folder import RunFolder

ITEMS_FILE = "items.jsonl"
REPORT_FILE = "report.json"

_ITEMS_AT_ONCE = 32
"""Items whose continuations are packed together; what an interruption loses at most."""


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
    observe: Observer = lambda progress: None,
) -> EvaluationReport:
    """Ask a model all items of the tasks, or the first `limit` of each, and write `REPORT_FILE` into the folder.

    Every item is written to the folder as soon as it is scored; those that are there already are not asked again, so a
    run that was cut off goes on, and a larger limit adds to a smaller one. `options` and `likelihood` are as in
    `ModelScorer`; `data` is in the cache directory unless given. Raise UsageError for a folder that holds other
    settings, and what the data and the model raise.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"limit={limit} must be at least 1")
    data = data or TaskData()
    kind = likelihood or default_likelihood(options.mode)
    scorer = ModelScorer(model, options, kind)
    settings = {
        "model": model.checkpoint.card.name,
        "adapter": model.checkpoint.card.adapter,
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
            done += len(batch)
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
    """Yield items to ask together: many whose continuations are scored, one that wants something written."""
    begin = 0
    while begin < len(items):
        end = begin + 1
        if not _writes(items[begin]):
            while end < len(items) and end - begin < _ITEMS_AT_ONCE and not _writes(items[end]):
                end += 1
        yield items[begin:end]
        begin = end


def _writes(item: Item) -> bool:
    return any(isinstance(request, GenerationRequest) for request in item.requests)


def _ask(scorer: Scorer, task: str, items: Sequence[Item]) -> list[ItemRecord]:
    """Put the requests of all items to the model together, and deal the answers out."""
    begin = time.perf_counter()
    requests = [request for item in items for request in item.requests]
    likelihoods = iter(
        scorer.loglikelihood([request for request in requests if isinstance(request, LikelihoodRequest)])
    )
    texts = iter(
        scorer.generate_until([request for request in requests if isinstance(request, GenerationRequest)])
    )
    answers: list[list[Answer]] = [
        [
            next(likelihoods) if isinstance(request, LikelihoodRequest) else next(texts)
            for request in item.requests
        ]
        for item in items
    ]
    seconds = (time.perf_counter() - begin) / len(items)
    return [ItemRecord.of(task, item, own, seconds) for item, own in zip(items, answers, strict=True)]

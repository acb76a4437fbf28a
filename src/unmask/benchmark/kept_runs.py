"""The runs of a speed benchmark, kept until its record is written, so that one that was stopped goes on."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import TypeVar

from unmask.benchmark.latency import LatencyConfig
from unmask.benchmark.throughput import ThroughputConfig
from unmask.decoding.language_model import LanguageModel
from unmask.evaluation.fingerprint import described
from unmask.evaluation.ledger import Ledger
from unmask.evaluation.provenance import timing_conditions
from unmask.training.run_folder import RunFolder

_RUNS_FILE = "runs.jsonl"

R = TypeVar("R")


@contextmanager
def kept_runs(
    place: RunFolder,
    record: type[R],
    model: LanguageModel,
    config: LatencyConfig | ThroughputConfig,
    contenders: Sequence[str],
) -> Iterator[Ledger[R]]:
    """Yield the runs that were made before; without any in the end, keep no folder.

    Raise UsageError where they were made with other settings, of other weights, or on another machine.
    """
    place.claim_settings(
        {
            **asdict(config),
            "contenders": list(contenders),
            "model": described(model),
            **timing_conditions(model),
        }
    )
    ledger = Ledger(place, _RUNS_FILE, record)
    try:
        yield ledger
    finally:
        if not ledger.records:
            place.discard(place.path)

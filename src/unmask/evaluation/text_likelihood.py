"""How probable texts are to a model: window by window into a ledger, from there into a report."""

import hashlib
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

from unmask.decoding.language_model import LanguageModel
from unmask.decoding.options import Options
from unmask.errors import UsageError
from unmask.evaluation.continuations import Continuation, LikelihoodKind, rolling
from unmask.evaluation.fingerprint import described
from unmask.evaluation.held_out import WINDOW_TOKENS, Likelihood
from unmask.evaluation.ledger import Ledger, Observer
from unmask.evaluation.model_scorer import LIKELIHOODS, ModelScorer, default_likelihood
from unmask.evaluation.provenance import provenance_of
from unmask.evaluation.zero_shot import REPORT_FILE
from unmask.tokenizer import Tokenizer
from unmask.training.run_folder import RunFolder

WINDOWS_FILE = "windows.jsonl"


@dataclass(frozen=True)
class TextWindow:
    """Tokens of a source whose scored part spells `num_bytes` of it."""

    source: str
    number: int
    continuation: Continuation
    num_bytes: int


@dataclass(frozen=True)
class WindowNats:
    """One line of the ledger: -log p of a window, or what stands for it, in nats, and the error of its noise."""

    source: str
    number: int
    num_tokens: int
    num_bytes: int
    nats: float
    noise_error: float | None
    seconds: float


@dataclass(frozen=True)
class TextLikelihood:
    """Averages over the tokens and bytes of a text; their standard errors are over windows.

    `noise_error`: what of the error of the nats per token is the noise of the estimate; None where it is exact.
    """

    source: str
    num_windows: int
    num_tokens: int
    num_bytes: int
    likelihood: Likelihood
    noise_error: float | None
    seconds: float

    @classmethod
    def of(cls, source: str, windows: Sequence[WindowNats]) -> "TextLikelihood":
        """Sum up windows, one or more."""
        num_tokens = sum(window.num_tokens for window in windows)
        errors = [window.noise_error for window in windows if window.noise_error is not None]
        return cls(
            source=source,
            num_windows=len(windows),
            num_tokens=num_tokens,
            num_bytes=sum(window.num_bytes for window in windows),
            likelihood=Likelihood.of([window.nats for window in windows], windows),
            noise_error=math.hypot(*errors) / num_tokens if errors else None,
            seconds=round(sum(window.seconds for window in windows), 3),
        )


@dataclass(frozen=True)
class TextReport:
    """The likelihood of each source and of all together; `law` says in words what `likelihood` measures."""

    likelihood: str
    law: str
    settings: Mapping[str, object]
    provenance: Mapping[str, object]
    texts: tuple[TextLikelihood, ...]
    total: TextLikelihood


def text_likelihood(
    model: LanguageModel,
    texts: Mapping[str, Sequence[str]],
    folder: Path,
    options: Options,
    *,
    likelihood: LikelihoodKind | None = None,
    window: int | None = None,
    limit: int | None = None,
    observe: Observer = lambda progress: None,
) -> TextReport:
    """Measure the documents of each source, and write `REPORT_FILE` into the folder.

    Documents are cut into windows of `window` tokens (default: `WINDOW_TOKENS`, or what the model holds), of which the
    first `limit` of each source are measured. The windows depend on the tokenizer alone, so models that share it are
    compared on the same ones. Each is written down as soon as it is measured: a run that was cut off goes on, and a
    larger limit adds to a smaller one. `options` and `likelihood` are as in `ModelScorer`. Raise UsageError for texts
    of no token, a window that the model does not hold, and a folder of other settings.
    """
    longest = model.checkpoint.transformer.config.max_positions - 1
    window = min(WINDOW_TOKENS, longest) if window is None else window
    if not 1 <= window <= longest:
        raise UsageError(f"window={window} must be between 1 and {longest}, which this model holds")
    if limit is not None and limit < 1:
        raise UsageError(f"limit={limit} must be at least 1")
    kind = likelihood or default_likelihood(options.mode)
    scorer = ModelScorer(model, options, kind)
    windows = [
        each
        for source, documents in texts.items()
        for each in islice(windows_of(source, documents, model.tokenizer, window), limit)
    ]
    without = set(texts) - {each.source for each in windows}
    if without or not windows:
        raise UsageError(f"no text in {', '.join(sorted(without)) or 'nothing'}", "give a text")
    settings = {
        "model": described(model),
        **scorer.settings,
        "window": window,
        "tokenizer": model.tokenizer.digest,
        "texts": {source: _digest(documents) for source, documents in texts.items()},
    }
    place = RunFolder(folder, "likelihood of texts")
    place.claim_settings(settings)

    def measure(each: TextWindow) -> WindowNats:
        begin = time.perf_counter()
        (answer,) = scorer.score([each.continuation])
        return WindowNats(
            source=each.source,
            number=each.number,
            num_tokens=answer.num_tokens,
            num_bytes=each.num_bytes,
            nats=-answer.nats,
            noise_error=answer.standard_error,
            seconds=round(time.perf_counter() - begin, 4),
        )

    # The ledger's lines are the first windows of this order, under any limit.
    windows.sort(key=lambda each: each.number)
    records = Ledger(place, WINDOWS_FILE, WindowNats).fill(windows, measure, "windows", observe)
    report = TextReport(
        LIKELIHOODS.spell(kind),
        kind.law,
        settings,
        provenance_of(model),
        tuple(
            TextLikelihood.of(source, [record for record in records if record.source == source])
            for source in texts
        ),
        TextLikelihood.of("all", records),
    )
    place.write_json(REPORT_FILE, asdict(report))
    return report


def windows_of(
    source: str, documents: Sequence[str], tokenizer: Tokenizer, window: int
) -> Iterator[TextWindow]:
    """Yield the windows of documents, one after the other; a character is counted where its last token is."""
    number = 0
    for document in documents:
        ids, starts = tokenizer.encode_with_starts(document)
        begin = done = 0
        for each in rolling(tokenizer.beginning, ids, window):
            done += each.num_scored
            end = starts[done] if done < len(ids) else len(document)
            yield TextWindow(source, number, each, len(document[begin:end].encode()))
            begin, number = end, number + 1


def _digest(documents: Sequence[str]) -> str:
    return hashlib.sha256("\0".join(documents).encode()).hexdigest()[:16]

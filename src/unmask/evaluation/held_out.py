"""How well a model predicts held-out text: by its next-token law, exactly, and by its canvas, as a bound."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from unmask.errors import FailureError
from unmask.evaluation.average import Average, average
from unmask.evaluation.canvas_blocks import CanvasBlocks
from unmask.evaluation.likelihood import autoregressive_nll, block_bound
from unmask.layout import causal_layout
from unmask.model.denoiser import Denoiser
from unmask.tokenizer import Tokenizer
from unmask.training.documents import LEAST_TOKENS, draw_windows, read_texts, take_tokens

WINDOW_TOKENS = 256
"""Most tokens that are scored with one another in sight."""

NUM_NOISE_SAMPLES = 2
"""How often each window is noised for a bound."""


@dataclass(frozen=True)
class Window:
    """Tokens of a text: `num_given` start it for the model, the others are scored and spell `num_bytes` of text."""

    source: str
    number: int
    tokens: tuple[int, ...]
    num_given: int
    num_bytes: int


@dataclass(frozen=True)
class WindowScore:
    """Nats of one window: by the judged model's next-token law, by its base's, and bounds by the name of the canvas.

    `is_unchanged`: whether all next-token logits are the base's, bit for bit.
    """

    source: str
    number: int
    num_tokens: int
    num_bytes: int
    ar: float
    base: float | None
    is_unchanged: bool | None
    bounds: dict[str, float]


class Sized(Protocol):
    """What the nats of a window are divided by."""

    @property
    def num_tokens(self) -> int: ...

    @property
    def num_bytes(self) -> int: ...


@dataclass(frozen=True)
class Likelihood:
    """Averages over the tokens and bytes of a text; the samples are windows."""

    nats_per_token: Average
    perplexity: Average
    bits_per_byte: Average

    @classmethod
    def of(cls, nats: Sequence[float], windows: Sequence[Sized]) -> "Likelihood":
        """Average the nats of some windows."""
        per_token = average(nats, [window.num_tokens for window in windows])
        per_byte = average(nats, [window.num_bytes for window in windows])
        assert per_token is not None  # there is at least one window
        assert per_byte is not None
        perplexity = math.exp(per_token.mean)
        error = None if per_token.standard_error is None else perplexity * per_token.standard_error
        return cls(
            per_token,
            Average(perplexity, error, per_token.num_samples),
            per_byte.scaled(1 / math.log(2)),
        )


@dataclass(frozen=True)
class TextScore:
    """What one text says of a model; the fields are those of `WindowScore`."""

    source: str
    num_windows: int
    num_tokens: int
    num_bytes: int
    ar: Likelihood
    base: Likelihood | None
    is_unchanged: bool | None
    bounds: dict[str, Likelihood]

    @classmethod
    def of(cls, scores: Sequence[WindowScore]) -> "TextScore":
        """Sum up the windows of one source."""
        bases = [score.base for score in scores if score.base is not None]
        checks = [score.is_unchanged for score in scores if score.is_unchanged is not None]
        return cls(
            source=scores[0].source,
            num_windows=len(scores),
            num_tokens=sum(score.num_tokens for score in scores),
            num_bytes=sum(score.num_bytes for score in scores),
            ar=Likelihood.of([score.ar for score in scores], scores),
            base=Likelihood.of(bases, scores) if bases else None,
            is_unchanged=all(checks) if checks else None,
            bounds={
                name: Likelihood.of([score.bounds[name] for score in scores], scores)
                for name in scores[0].bounds
            },
        )


def windows_of_file(path: Path, tokenizer: Tokenizer, *, num_tokens: int, seed: int) -> list[Window]:
    """Return about `num_tokens` tokens of a file of documents, one window of each document drawn."""
    texts = [text for text in read_texts(path) if text.strip()]
    drawn = draw_windows(texts, tokenizer, WINDOW_TOKENS, np.random.default_rng(seed))
    pieces = [document.ids for document in take_tokens(drawn, num_tokens)]
    if not pieces:
        raise FailureError(
            f"{path} has no document of {LEAST_TOKENS} tokens or more", "give a file with longer texts"
        )
    return _windows(str(path), pieces, tokenizer)


def windows_of_texts(source: str, texts: Iterable[str], tokenizer: Tokenizer) -> list[Window]:
    """Return the beginning of each text as a window."""
    return _windows(source, [tokenizer.encode(text)[:WINDOW_TOKENS] for text in texts], tokenizer)


def _windows(source: str, pieces: Sequence[Sequence[int]], tokenizer: Tokenizer) -> list[Window]:
    given = tokenizer.beginning
    return [
        Window(
            source,
            number,
            (*given, *piece),
            len(given),
            len(tokenizer.decode(piece, skip_special=False).encode()),
        )
        for number, piece in enumerate(pieces)
    ]


def score_window(
    window: Window,
    denoiser: Denoiser,
    base: Denoiser | None,
    canvases: Mapping[str, tuple[CanvasBlocks, int]],
    *,
    seed: int,
) -> WindowScore:
    """Measure one window. `canvases`: by name, each with its block length; equal seeds mean equal noise for all."""
    logits = _next_token_logits(denoiser, window)
    base_logits = None if base is None else _next_token_logits(base, window)
    return WindowScore(
        source=window.source,
        number=window.number,
        num_tokens=len(window.tokens) - window.num_given,
        num_bytes=window.num_bytes,
        ar=_nats(logits, window),
        base=None if base_logits is None else _nats(base_logits, window),
        is_unchanged=None if base_logits is None else torch.equal(logits, base_logits),
        bounds={
            name: _bound(blocks, length, window, seed=seed) for name, (blocks, length) in canvases.items()
        },
    )


@torch.inference_mode()
def _next_token_logits(denoiser: Denoiser, window: Window) -> Tensor:
    """Return the causal stream's logits for every scored token: (n, V)."""
    tokens = torch.tensor(window.tokens, device=denoiser.transformer.device)
    hidden = denoiser.transformer(denoiser.embed(tokens), causal_layout(len(tokens)))
    return denoiser.head(hidden[window.num_given - 1 : -1]).cpu()


def _nats(logits: Tensor, window: Window) -> float:
    scored = torch.tensor(window.tokens[window.num_given :])
    return autoregressive_nll(logits[None], scored[None]).item()


def _bound(blocks: CanvasBlocks, block_length: int, window: Window, *, seed: int) -> float:
    generator = torch.Generator().manual_seed(seed * 1_000_003 + window.number)
    estimate = block_bound(
        blocks,
        torch.tensor(window.tokens)[None],
        blocks.process,
        block_length,
        generator,
        num_samples=NUM_NOISE_SAMPLES,
        num_given=window.num_given,
        batch_rows=NUM_NOISE_SAMPLES,
    )
    return estimate.mean.item()

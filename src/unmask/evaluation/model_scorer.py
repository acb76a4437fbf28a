"""A language model as tasks see it, in any mode and with any rule."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from hashlib import sha256

from unmask.decoding.admission import admit, default_sampler
from unmask.decoding.language_model import LanguageModel
from unmask.decoding.mode import Mode
from unmask.decoding.options import Options
from unmask.errors import UsageError
from unmask.evaluation.autoregressive import Autoregressive
from unmask.evaluation.canvas_likelihood import Bound, Duel, Flow
from unmask.evaluation.continuations import Continuation, LikelihoodKind, rolling
from unmask.evaluation.scoring import Generated, GenerationRequest, LikelihoodRequest, LogLikelihood
from unmask.evaluation.together import Asked, Together, in_turn
from unmask.registry import Registry

LIKELIHOODS: Registry[type[LikelihoodKind]] = Registry(
    "likelihood",
    group="unmask.likelihoods",
    items={"ar": Autoregressive, "bound": Bound, "duel": Duel, "flow": Flow},
)

_OF_A_REQUEST = ("max_tokens", "stop", "suffix_ids")
"""Options that each request sets for itself."""


def default_likelihood(mode: Mode) -> LikelihoodKind:
    """Return the likelihood of what a mode writes, or a bound on it; speculation writes the autoregressive law."""
    return LIKELIHOODS.parse("bound" if mode == "diffusion" else "ar")


class ModelScorer:
    """A `Scorer`: prompts are bare texts, split into tokens as lm-evaluation-harness does.

    `options` decide how text is written; its length, stops and seed are each request's own. With a temperature
    every request draws noise of its own, by its context, so that no result depends on the order of items. A gap is
    filled with a view of both sides in mode diffusion; the other modes write on from what comes before it.
    `likelihood`: that of the mode, unless given. `together` decodes what is to be written. Raises UsageError where the
    model lacks what is asked for.
    """

    def __init__(
        self,
        model: LanguageModel,
        options: Options,
        likelihood: LikelihoodKind | None = None,
        *,
        together: Together = in_turn,
    ) -> None:
        card = model.checkpoint.card
        self._model, self._together = model, together
        self._options = options.resolve(
            block_length=card.block_length,
            stop_token_ids=tuple(card.stop_token_ids),
            sampler=default_sampler(model.denoiser),
        )
        admit(model.denoiser, (0,), self._options)  # whether the model has the mode at all
        self._window = model.checkpoint.transformer.config.max_positions
        self._kind = likelihood or default_likelihood(options.mode)
        self._likelihood = self._kind.prepare(model, self._options)

    @property
    def settings(self) -> dict[str, object]:
        """All that decides the answers of one model, as plain values."""
        given = {
            field.name: getattr(self._options, field.name)
            for field in fields(self._options)
            if field.name not in _OF_A_REQUEST
        }
        plain = {
            name: value if value is None or isinstance(value, int | float | str) else str(value)
            for name, value in given.items()
        }
        return {**plain, "likelihood": str(self._kind)}

    def loglikelihood(self, requests: Sequence[LikelihoodRequest]) -> list[LogLikelihood]:
        """Return the likelihood of each continuation after its context, cut at its beginning where it is too long."""
        continuations, dropped = [], []
        for request in requests:
            context, scored = self._encode_pair(request.context, request.continuation)
            if len(scored) > self._window:
                raise UsageError(
                    f"a continuation has {len(scored)} tokens, the model's window {self._window}"
                )
            tokens = (*context, *scored)
            continuations.append(Continuation(tokens[-self._window - 1 :], len(scored)))
            dropped.append(max(0, len(tokens) - self._window - 1))
        answers = self.score(continuations)
        return [replace(answer, num_dropped=count) for answer, count in zip(answers, dropped, strict=True)]

    def loglikelihood_rolling(self, texts: Sequence[str]) -> list[LogLikelihood]:
        """Return the likelihood of whole texts: each token once, after as many as the window holds."""
        tokenizer = self._model.tokenizer
        windows = [list(rolling(tokenizer.beginning, tokenizer.encode(text), self._window)) for text in texts]
        answers = iter(self.score([window for some in windows for window in some]))
        return [_sum([next(answers) for _ in some]) for some in windows]

    def score(self, continuations: Sequence[Continuation]) -> list[LogLikelihood]:
        """Return the likelihood of tokens that are at hand, of no more than the model's window."""
        return self._likelihood(continuations)

    def generate_until(self, requests: Sequence[GenerationRequest]) -> list[Generated]:
        """Write on from each context, cut at its beginning where it is too long."""
        done = dict(self.written(requests))
        return [done[number] for number in range(len(requests))]

    def written(self, requests: Sequence[GenerationRequest]) -> Iterator[tuple[int, Generated]]:
        """Write on from each context as `generate_until`; yield each one's number and text as soon as it is there."""
        contexts = [self._model.encode(request.context, raw=True) for request in requests]
        asked = [self._asked(*pair) for pair in zip(requests, contexts, strict=True)]
        for number, generation in self._together(self._model, asked):
            counts = (generation.num_tokens, generation.num_forwards, generation.num_decode_forwards)
            yield (
                number,
                Generated(
                    _until(generation.text, requests[number].until),
                    *counts,
                    num_dropped=len(contexts[number]) - len(asked[number][0]),
                ),
            )

    def _asked(self, request: GenerationRequest, context: Sequence[int]) -> Asked:
        """Return what is to be decoded for a request whose context has these tokens."""
        tokenizer, gap = self._model.tokenizer, request.gap
        fills = gap is not None and self._options.mode == "diffusion"
        after = tokenizer.encode(gap.after) if gap is not None and fills else []
        room = self._window - request.max_tokens - len(after)
        if room < 1:
            raise UsageError(
                f"an answer may have {request.max_tokens} tokens and {len(after)} follow it, but the model's window "
                f"holds {self._window}",
                "choose another task",
            )
        options = replace(
            self._options, max_tokens=request.max_tokens, seed=self._options.seed ^ _digest(request.context)
        )
        if gap is not None and after:
            num_open = min(len(tokenizer.encode(gap.removed)), request.max_tokens)
            hole = replace(options, max_tokens=num_open, block_length=None, suffix_ids=tuple(after))
            return context[-room:], replace(hole, stop_token_ids=())
        return context[-room:], self._with_stops(options, request.until)

    def _with_stops(self, options: Options, until: Sequence[str]) -> Options:
        """Add texts to stop at; where one is a special token, which never shows, its id."""
        specials = self._model.tokenizer.special_ids
        ids = {text: self._model.tokenizer.token_id(text) for text in until}
        return replace(
            options,
            stop=tuple(text for text, id in ids.items() if id not in specials),
            stop_token_ids=(
                *(options.stop_token_ids or ()),
                *(id for id in ids.values() if id is not None and id in specials),
            ),
        )

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Return the tokens before and after the join; space at the context's end goes with the continuation."""
        tokenizer = self._model.tokenizer
        stripped = context.rstrip()
        if not context:
            before, after = tokenizer.beginning, tokenizer.encode(continuation)
        else:
            before = tokenizer.encode_prompt(stripped)
            after = tokenizer.encode_prompt(context + continuation)[len(before) :]
        if not before:
            before = tokenizer.beginning
        if not after:
            raise UsageError(f"the continuation {continuation!r} adds no token to its context")
        return before, after


def _sum(answers: Sequence[LogLikelihood]) -> LogLikelihood:
    nats, num_tokens = sum(answer.nats for answer in answers), sum(answer.num_tokens for answer in answers)
    is_greedy = (
        None
        if any(answer.is_greedy is None for answer in answers)
        else all(answer.is_greedy for answer in answers)
    )
    errors = [answer.standard_error for answer in answers]
    is_exact = any(error is None for error in errors)
    error = None if is_exact else math.hypot(*(error or 0.0 for error in errors))
    return LogLikelihood(nats, is_greedy, num_tokens, standard_error=error)


def _until(text: str, stops: Sequence[str]) -> str:
    return text[: min((place for stop in stops if (place := text.find(stop)) >= 0), default=len(text))]


def _digest(text: str) -> int:
    return int.from_bytes(sha256(text.encode()).digest()[:4])

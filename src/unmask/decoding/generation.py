"""What a decoder tells: a snapshot after every forward, and the generation at the end."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from unmask.decoding.logprobs import TokenLogprobs
from unmask.decoding.mode import Mode
from unmask.decoding.options import Options
from unmask.decoding.transcript import FinishReason, Transcript

Phase = Literal["prefill", "step", "denoise", "commit", "draft", "verify"]


@dataclass(frozen=True)
class Snapshot:
    """The state after one forward.

    `token_ids`: what was decided before the canvas. `canvas`: the tokens after them, `None` where open; after
    a draft they are proposals. `decided_at`: for both together, the decode forward that decided each (0 for
    the prefill). `confidence`: of the canvas of a continuous model, whose tokens are the most probable ones so far,
    their probabilities; empty for other models.
    """

    phase: Phase
    token_ids: tuple[int, ...]
    canvas: tuple[int | None, ...]
    decided_at: tuple[int | None, ...]
    num_forwards: int
    confidence: tuple[float, ...] = ()


@dataclass(frozen=True)
class Generation:
    """A finished generation and what it took.

    `token_ids` include the stop token that ended it, and end with the token that completed a stop string;
    `text` has neither. `num_forwards` counts every call of the backbone, `num_decode_forwards` leaves the
    prefill out, and `tokens_per_forward` is `num_tokens` over the latter, `None` when there was none.
    `accepted_lengths`: drafted tokens accepted in each draft-verify cycle, without the one the verifier adds.
    `decided_at`: the decode forward that decided each token, 0 for the first, which comes from the prefill.
    `seconds`: of the phases "prefill" and "decode". `logprobs`: of each token, where `num_logprobs` asked for them.
    """

    text: str
    token_ids: tuple[int, ...]
    mode: Mode
    num_tokens: int
    num_forwards: int
    num_decode_forwards: int
    tokens_per_forward: float | None
    accepted_lengths: tuple[int, ...]
    decided_at: tuple[int, ...]
    finish_reason: FinishReason
    seconds: dict[str, float]
    seed: int
    prompt_tokens: int
    logprobs: tuple[TokenLogprobs, ...] | None = None

    @classmethod
    def of(
        cls,
        transcript: Transcript,
        options: Options,
        *,
        prompt_tokens: int,
        num_forwards: int,
        num_decode_forwards: int,
        accepted_lengths: Sequence[int],
        seconds: dict[str, float],
    ) -> "Generation":
        """Return the generation that a finished transcript is."""
        assert transcript.finish_reason is not None  # every loop runs until then
        num_tokens = len(transcript.token_ids)
        return cls(
            text=transcript.text,
            token_ids=tuple(transcript.token_ids),
            mode=options.mode,
            num_tokens=num_tokens,
            num_forwards=num_forwards,
            num_decode_forwards=num_decode_forwards,
            tokens_per_forward=num_tokens / num_decode_forwards if num_decode_forwards else None,
            accepted_lengths=tuple(accepted_lengths),
            decided_at=tuple(transcript.decided_at),
            finish_reason=transcript.finish_reason,
            seconds=seconds,
            seed=options.seed,
            prompt_tokens=prompt_tokens,
            logprobs=None if options.num_logprobs is None else tuple(transcript.logprobs),
        )


Event = Snapshot | Generation

"""Log-probabilities of generated tokens."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class TokenLogprobs:
    """What the model itself says at a token's place: the law of the next token after the text before it.

    That law is neither biased, penalised, tempered, cut nor constrained. Natural logarithms: `logprob` of the token
    that was written, `top` of the likeliest ones, (token, log-probability), best first; impossible tokens are left out.
    """

    logprob: float
    top: tuple[tuple[int, float], ...]


def token_logprobs(logits: Tensor, tokens: Sequence[int], num_top: int) -> list[TokenLogprobs]:
    """Return what (n, V) logits of the next token, or more rows, say of n tokens and of the `num_top` likeliest."""
    law = logits[: len(tokens)].double().log_softmax(-1)
    best = law.topk(min(num_top, law.shape[-1]), dim=-1)
    return [
        TokenLogprobs(
            float(row[token]),
            tuple((i, value) for i, value in zip(ids, values, strict=True) if value > -float("inf")),
        )
        for row, token, ids, values in zip(
            law, tokens, best.indices.tolist(), best.values.tolist(), strict=True
        )
    ]

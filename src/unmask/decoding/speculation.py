"""Lossless speculation: how many drafted tokens the verifier accepts, and the token it adds."""

from dataclasses import dataclass

from torch import Tensor

from unmask.decoding.candidates import draw
from unmask.decoding.constraint import NO_TOKEN
from unmask.errors import FailureError


@dataclass(frozen=True)
class Verdict:
    """The number of accepted drafts, and the verifier's own token after them."""

    num_accepted: int
    next_token: int


def acceptance(drafts: Tensor, draft_law: Tensor, verifier_law: Tensor) -> Tensor:
    """Return the probability min(1, p/q) that each draft is accepted, given that those before it were: (B,).

    `drafts`: (B,) tokens drawn from `draft_law` q (B, V). `verifier_law` p: (B, V) or more rows.
    With one-hot laws this is 1 where draft and greedy choice agree, else 0.
    """
    index = drafts[:, None]
    wanted = verifier_law[: len(drafts)].gather(-1, index)[:, 0]
    offered = draft_law.gather(-1, index)[:, 0]
    return (wanted / offered).clamp(max=1.0)


def residual(verifier_law: Tensor, draft_law: Tensor) -> Tensor:
    """Return the law of the token that replaces a rejected draft: (V,), proportional to max(p - q, 0).

    Together with min(1, p/q) it leaves the verifier's law unchanged, and no rule accepts more often
    (Leviathan et al. 2022, arXiv 2211.17192, theorem 1; Chen et al. 2023, arXiv 2302.01318).
    """
    gap = (verifier_law - draft_law).clamp(min=0.0)
    total = gap.sum()
    # No gap: the laws are equal up to rounding, and a rejection is itself a rounding error.
    return verifier_law if total == 0 else gap / total


def accept(
    drafts: Tensor, draft_law: Tensor, verifier_law: Tensor, accept_noise: Tensor, next_noise: Tensor
) -> Verdict:
    """Accept the longest run of drafts, then draw one more token; the tokens follow the verifier's law.

    `drafts`: (B,) tokens drawn from `draft_law` (B, V). `verifier_law`: (B + 1, V), row i being the law after
    i drafts.
    `accept_noise`: (B,) and `next_noise`: (B + 1,) uniforms, of which each position uses at most one. The
    next token follows the residual law where a draft was rejected, the last row where none was. B may be 0. Raises
    FailureError where the verifier's law there is zero: a constraint leaves no token.
    """
    accepted = accept_noise < acceptance(drafts, draft_law, verifier_law)
    count = int(accepted.long().cumprod(0).sum())
    law = verifier_law[count]
    if not law.any():
        raise FailureError(NO_TOKEN)
    if count < len(drafts):
        law = residual(law, draft_law[count])
    return Verdict(count, int(draw(law[None], next_noise[count : count + 1])[0]))

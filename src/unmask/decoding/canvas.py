"""The canvas: the span of tokens being decided."""

from dataclasses import dataclass

import torch
from torch import Tensor

from unmask.errors import UsageError


@dataclass(frozen=True)
class Canvas:
    """Tokens, which of them are open, and the forward that decided each of the others; all (..., L).

    Open positions hold the mask token, and -1 in `decided_at`. A decided position never changes.
    """

    tokens: Tensor
    open: Tensor
    decided_at: Tensor

    @classmethod
    def blank(cls, length: int, mask_token_id: int) -> "Canvas":
        """Return one canvas of `length` open positions."""
        shape = (length,)
        return cls(
            torch.full(shape, mask_token_id), torch.ones(shape, dtype=torch.bool), torch.full(shape, -1)
        )

    def commit(self, chosen: Tensor, tokens: Tensor, step: int) -> "Canvas":
        """Return the canvas with `tokens` decided at the `chosen` positions, (..., L), by forward `step`.

        Raises ValueError when a chosen position was decided before.
        """
        if (chosen & ~self.open).any():
            raise ValueError(
                f"positions {(chosen & ~self.open).nonzero().tolist()} are decided and cannot change"
            )
        return Canvas(
            torch.where(chosen, tokens, self.tokens),
            self.open & ~chosen,
            self.decided_at.masked_fill(chosen, step),
        )

    @property
    def shown(self) -> list[int | None]:
        """The tokens of one canvas, `None` where open."""
        pairs = zip(self.tokens.tolist(), self.open.tolist(), strict=True)
        return [None if is_open else token for token, is_open in pairs]

    @property
    def num_leading(self) -> Tensor:
        """How many decided positions stand before the first open one: (...)."""
        return (~self.open).long().cumprod(-1).sum(-1)


def check_canvases(tokens: Tensor, free: Tensor, *, steps: int, num_seeds: int, vocab_size: int) -> None:
    """Raise UsageError unless canvases (B, L), their free tokens and seeds fit, and given tokens exist."""
    if tokens.ndim != 2 or tokens.shape != free.shape or free.dtype != torch.bool or num_seeds != len(tokens):
        raise UsageError(
            f"tokens {tuple(tokens.shape)}, free {tuple(free.shape)} {free.dtype} and {num_seeds} seeds do not fit",
            "give (B, L), (B, L) booleans and B seeds",
        )
    if steps < 1:
        raise UsageError(f"steps={steps} must be at least 1")
    given = tokens[~free]
    if ((given < 0) | (given >= vocab_size)).any():
        raise UsageError(f"given positions hold tokens outside the vocabulary of {vocab_size}", "free them")

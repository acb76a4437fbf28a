"""Requests without a tokenizer or a model."""

from dataclasses import dataclass, field

from unmask.engine.pages import PagePool, PageTable
from unmask.engine.request import Request


@dataclass
class Words:
    """Generated tokens that end at `limit` of them or at token `stop`."""

    limit: int
    stop: int | None = None
    token_ids: list[int] = field(default_factory=list)
    decided_at: list[int] = field(default_factory=list)
    is_finished: bool = False

    @property
    def room(self) -> int:
        return self.limit - len(self.token_ids)

    def append(self, token: int, step: int) -> None:
        if not self.is_finished:
            self.token_ids.append(token)
            self.decided_at.append(step)
            self.is_finished = token == self.stop or not self.room


def plain_request(
    pool: PagePool,
    *,
    number: int = 0,
    prompt: tuple[int, ...] = (1, 2, 3),
    limit: int = 10,
    stop: int | None = None,
    mode: str = "ar",
    block_length: int = 4,
    num_steps: int | None = None,
    looks_back: bool = True,
    predicts_next: bool = True,
) -> Request:
    return Request(
        number,
        prompt,
        Words(limit, stop),
        PageTable(pool),
        mode,
        block_length=0 if mode == "ar" else block_length,
        num_steps=num_steps,
        looks_back=looks_back,
        predicts_next=predicts_next,
    )

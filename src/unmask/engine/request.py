"""The state of one request: what is decided, how much of it is stored, and what the next forward has to settle."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from unmask.engine.pages import PageTable

Kind = Literal["step", "denoise", "draft", "verify"]
"""What a forward settles for a request beside storing what is decided.

`step`: the next token, by the law after the last decided one; prefills and commits of blocks end in steps.
`denoise`: some open positions of the canvas. `draft`: a proposal for a whole canvas. `verify`: how much of it holds.
"""


class Written(Protocol):
    """The generated tokens of a request and the reason to stop; `decoding.transcript.Transcript` is one."""

    token_ids: list[int]

    @property
    def room(self) -> int: ...
    @property
    def is_finished(self) -> bool: ...
    def append(self, token: int, step: int) -> None: ...


@dataclass(eq=False)
class Request:
    """One request. Every state is derived: nothing here says "prefilling", "preempted" or "waiting".

    `number`: its place in the order of arrival. `mode`: "ar", "diffusion" or "speculative", which may change whenever
    nothing is open; with it `block_length`, the most positions of a canvas (0 without one).
    `most_beside`: most tokens that a verification runs after decided ones, where these are not a block's drafts alone.
    `num_steps`: most denoise forwards of a canvas. `looks_back`: a canvas position is predicted from the one before it
    (logit shift). `predicts_next`: the causal stream gives laws, else canvases do alone.

    `num_stored`: leading positions whose keys and values are in the pages of `table`. `canvas`: its decided tokens,
    `None` where open; empty before its first forward. `drafts`: tokens that wait for their verification, which stores
    them; `num_beside`: how many others it runs, other candidates and pre-drafts. `needs_law`: it has to give the law of
    the first draft too, which no draft forward told.
    `next_is_causal`: the next token comes from the causal stream's law, whatever the mode.
    """

    number: int
    prompt: tuple[int, ...]
    written: Written
    table: PageTable
    mode: str
    block_length: int = 0
    most_beside: int = 0
    num_steps: int | None = None
    looks_back: bool = True
    predicts_next: bool = True
    num_stored: int = 0
    num_forwards: int = 0
    num_decode_forwards: int = 0
    canvas: list[int | None] = field(default_factory=list)
    canvas_decided_at: list[int] = field(default_factory=list)
    num_denoised: int = 0
    drafts: list[int] = field(default_factory=list)
    num_beside: int = 0
    needs_law: bool = False
    accepted_lengths: list[int] = field(default_factory=list)
    next_is_causal: bool = field(init=False)

    def __post_init__(self) -> None:
        self.next_is_causal = self.predicts_next

    @property
    def num_decided(self) -> int:
        return len(self.prompt) + len(self.written.token_ids)

    @property
    def is_finished(self) -> bool:
        return self.written.is_finished

    @property
    def is_between(self) -> bool:
        """Say whether nothing is open, so that the mode may change."""
        return not self.canvas and not self.drafts and not self.next_is_causal

    def decided(self, begin: int, end: int) -> list[int]:
        """Return the decided tokens at positions ``[begin, end)``."""
        past = len(self.prompt)
        written = self.written.token_ids[max(0, begin - past) : max(0, end - past)]
        return [*self.prompt[begin:end], *written]

    @property
    def kind(self) -> Kind:
        if self.drafts:
            return "verify"
        if (
            self.next_is_causal
            or self.mode == "ar"
            or (self.mode == "speculative" and self.written.room == 1)
        ):
            return "step"
        return "denoise" if self.mode == "diffusion" else "draft"

    @property
    def base(self) -> int:
        """The position after the decided tokens that run causally; what is open follows."""
        return self.num_decided - self.num_leading

    @property
    def num_leading(self) -> int:
        """How many of the canvas's tokens stand before its first open position: they count as decided."""
        return next((i for i, token in enumerate(self.canvas) if token is None), len(self.canvas))

    @property
    def num_open(self) -> int:
        """How many tokens after `base` the next forward settles: the canvas, or the drafts."""
        match self.kind:
            case "verify":
                return len(self.drafts) + self.num_beside
            case "draft":  # the verifier's own token comes along
                return min(self.block_length, self.written.room - 1)
            case "denoise":
                return len(self.canvas) or min(self.block_length, self.written.room)
            case "step":
                return 0

    @property
    def first(self) -> int:
        """The first position that must run: the first not stored, or one before if its state is needed again."""
        kind = self.kind
        needs_last = kind in ("step", "draft") or (kind == "denoise" and self.looks_back)
        needs_last = needs_last or (kind == "verify" and self.needs_law)
        return min(self.num_stored, self.base - int(needs_last))

    @property
    def decode_number(self) -> int:
        """The number of the coming forward among the decode forwards, 0 for the one that ends the prefill."""
        ends_prefill = self.predicts_next and not self.written.token_ids
        return 0 if ends_prefill else self.num_decode_forwards + 1

    @property
    def steps_left(self) -> int | None:
        """How many denoise forwards the canvas may still use, the coming one included."""
        return None if self.num_steps is None else self.num_steps - self.num_denoised

    def store(self, end: int) -> None:
        """Record that positions up to `end` are in the pages, and publish the pages that are full."""
        self.num_stored = end
        sure = min(end, self.num_decided)  # drafts behind a stop were stored, and are not decided
        if sure // self.table.pool.page_size > self.table.num_published:
            self.table.publish(self.decided(0, sure))

    def take_next(self, token: int) -> None:
        """Take the token of a step."""
        self._count()
        self.next_is_causal = False
        self._write(token)

    def commit(self, chosen: Mapping[int, int]) -> None:
        """Take the tokens that a denoise forward chose, by canvas place."""
        length = self.num_open
        self._count()
        self.canvas = self.canvas or [None] * length
        self.canvas_decided_at = self.canvas_decided_at or [-1] * length
        self.num_denoised += 1
        num_before = self.num_leading
        for place, token in chosen.items():
            if self.canvas[place] is not None:
                raise ValueError(f"request {self.number}: canvas place {place} is decided and cannot change")
            self.canvas[place], self.canvas_decided_at[place] = token, self.num_decode_forwards
        for place in range(num_before, self.num_leading):
            token_here = self.canvas[place]
            assert token_here is not None
            self._write(token_here, self.canvas_decided_at[place])
        if self.num_leading == length:
            self.canvas, self.canvas_decided_at, self.num_denoised = [], [], 0
            self.next_is_causal = self.predicts_next

    def propose(self, drafts: Sequence[int]) -> None:
        """Take the proposals of a draft forward."""
        self._count()
        self.plan_verification(drafts)

    def plan_verification(
        self, drafts: Sequence[int], *, num_beside: int = 0, needs_law: bool = False
    ) -> None:
        """Let the next forward verify drafts, and run so many tokens beside them."""
        self.drafts, self.num_beside, self.needs_law = list(drafts), num_beside, needs_law

    def accept(self, num_accepted: int, next_token: int) -> None:
        """Take the leading drafts that a verification accepted, and its own token after them."""
        self.accept_path(self.drafts[:num_accepted], next_token, num_stored=num_accepted)

    def accept_path(self, accepted: Sequence[int], next_token: int, *, num_stored: int) -> None:
        """Take the tokens that a verification accepted and its own after them; so many of them it has stored."""
        self._count()
        base = self.num_decided
        self.accepted_lengths.append(len(accepted))
        self.plan_verification(())
        for token in [*accepted, next_token]:
            self._write(token)
        self.store(base + num_stored)

    def forget_stored(self) -> None:
        """Release every page; what is decided, open or drafted stays."""
        self.table.clear()
        self.num_stored = 0

    def _count(self) -> None:
        self.num_decode_forwards = self.decode_number

    def _write(self, token: int, step: int | None = None) -> None:
        self.written.append(token, self.num_decode_forwards if step is None else step)

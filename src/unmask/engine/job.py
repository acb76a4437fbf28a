"""A request of the engine with what its tokens are drawn by."""

from dataclasses import dataclass, field, replace

from torch import Tensor

from unmask.decoding.candidates import Keys
from unmask.decoding.decision import Drift
from unmask.decoding.options import Options
from unmask.decoding.proposal import Moment, Proposal
from unmask.decoding.text_law import TextLaw
from unmask.decoding.transcript import Transcript
from unmask.engine.planner import STEP, Way
from unmask.engine.request import Request
from unmask.errors import FailureError
from unmask.rng import Stream


@dataclass(frozen=True)
class LinearProposal:
    """What a draft leaves for its verification: the law (B, V) of its tokens, and the AR logits (V,) of the first."""

    law: Tensor
    next_logits: Tensor


@dataclass(eq=False)
class Job:
    """A request with what its tokens are drawn by, and the tensors it keeps from one forward to the next.

    `plan`: the options it drafts by, which in mode auto are the planner's `way`; `drafted_by`: what that was when the
    tree was proposed. `failure`: why it cannot go on.
    """

    request: Request
    options: Options
    transcript: Transcript
    text_law: TextLaw
    plan: Options = field(init=False)
    way: Way = STEP
    drafted_by: Way = STEP
    drift: Drift = field(default_factory=lambda: Drift(0))
    belief: Tensor | None = None
    proposal: LinearProposal | None = None
    tree: Proposal | None = None
    failure: FailureError | None = None

    def __post_init__(self) -> None:
        self.plan = replace(self.options, mode="speculative") if self.is_planned else self.options

    @property
    def is_planned(self) -> bool:
        return self.options.mode == "auto"

    @property
    def has_tree(self) -> bool:
        """Whether the coming forward drafts or verifies a tree, or what else has pre-drafts."""
        return self.tree is not None or (self.request.kind == "draft" and not self.plan.is_linear)

    def follow(self, way: Way) -> None:
        """Draft from now on as the planner wants.

        What is drafted is verified first; a pre-draft that stands ready then is verified too, with no others beside it
        where the planner wants none.
        """
        if self.tree is not None and way.is_linear:
            way = replace(self.way, num_predrafts=0)
        if way != self.way and way.block_length:
            self.plan = replace(
                self.plan,
                block_length=way.block_length,
                tree_size=way.num_candidates if way.branching else None,
                num_predrafts=way.num_predrafts or None,
            )
            self.way = way

    def moment(self, step: int) -> Moment:
        """Return where and when the forward `step` draws the nodes of trees."""
        request = self.request
        return Moment(self.plan, self.text_law, request.num_decided, step, request.written.room)

    def noise(self, length: int, stream: Stream) -> Tensor:
        """Return the uniforms of `length` positions from the base on, at the coming forward: (length,) float64."""
        request = self.request
        places = range(request.base, request.base + length)
        return Keys.of_one(self.options.seed, places, request.decode_number).noise(stream)[0]

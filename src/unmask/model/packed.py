"""What one forward runs for many requests: each continues its own cache row with decided tokens, a canvas, or both."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from unmask.layout import Segment


@dataclass(frozen=True)
class Branch:
    """Tokens that follow the first `offset` of a part's own, or of its branch `parent`, and leave no trace.

    They run causally, and the law after each is asked for; with `places` they are a canvas instead, whose laws at these
    places are.
    """

    tokens: Sequence[int]
    offset: int
    parent: int | None = None
    places: Sequence[int] | None = None


@dataclass(frozen=True)
class Part:
    """One cache row's part: `tokens` from position `start` on run causally, then `canvas` after them runs both ways.

    `store`: the tokens' keys and values are kept (those of a canvas never are). `num_laws`: so many of the last tokens
    are asked for the law after them. `canvas`: the mask token where open; its tokens run with the adapter. `places`:
    the canvas places whose laws are asked for. A model with a logit shift needs a token before a canvas, and the law at
    its first place is the one after that token. `time` (broadcasts to (B,)) and `belief` (B, K) of the canvas are for
    the ports of a denoiser that has them. `branches`: what else grows from the tokens, a parent before its children;
    canvases among them are all open.
    """

    row: int
    start: int
    tokens: Sequence[int]
    store: bool = True
    num_laws: int = 0
    canvas: Sequence[int] = ()
    places: Sequence[int] = ()
    time: float | Tensor = 1.0
    belief: Tensor | None = None
    branches: Sequence[Branch] = ()


@dataclass(frozen=True)
class PackedCanvas:
    """A canvas among packed tokens: where it lies, how many places it has, and what its ports are told."""

    span: slice
    length: int
    time: float | Tensor
    belief: Tensor | None


@dataclass
class Packed:
    """Parts side by side: packed tokens and their segments, the canvases among them, and whose states are asked for.

    `counts`: how many states each part asks for: of its tokens, its canvas, its branches. `shift`: how many places
    before itself a canvas place is predicted from.
    """

    shift: int
    mask_token_id: int | None
    segments: list[Segment] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    canvases: list[PackedCanvas] = field(default_factory=list)
    wanted: list[int] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)

    def add(self, part: Part) -> None:
        """Pack a part."""
        num_wanted, root, num_tokens = len(self.wanted), len(self.segments), len(part.tokens)
        if num_tokens:
            self._append(Segment(part.start, num_tokens, store=part.store, row=part.row), part.tokens)
            end = len(self.tokens)
            self.wanted += range(end - part.num_laws, end)
        if part.canvas:
            parent, offset, row = (root, num_tokens, None) if num_tokens else (None, None, part.row)
            segment = Segment(part.start + num_tokens, 1, parent, offset, row=row)
            self._append_canvas(segment, part.canvas, part.places, part.time, part.belief)
        numbers = [root]
        for branch in part.branches:
            parent = numbers[0 if branch.parent is None else branch.parent + 1]
            start = self.segments[parent].start + branch.offset
            numbers.append(len(self.segments))
            segment, begin = Segment(start, len(branch.tokens), parent, branch.offset), len(self.tokens)
            if branch.places is not None:
                self._append_canvas(segment, branch.tokens, branch.places)
            else:
                self._append(segment, branch.tokens)
                self.wanted += range(begin, len(self.tokens))
        self.counts.append(len(self.wanted) - num_wanted)

    def _append_canvas(
        self,
        segment: Segment,
        canvas: Sequence[int],
        places: Sequence[int],
        time: float | Tensor = 1.0,
        belief: Tensor | None = None,
    ) -> None:
        """Pack a canvas where a segment says.

        A last open position that, under a shift, predicts beyond the canvas and tells the others nothing does not run.
        """
        begin = len(self.tokens)
        run = canvas[:-1] if self.shift and canvas[-1] == self.mask_token_id else canvas
        self.wanted += [begin + place - self.shift for place in places]
        if run:
            self._append(replace(segment, length=len(run), causal=False, adapter=True), run)
            span = slice(begin, len(self.tokens))
            self.canvases.append(PackedCanvas(span, len(canvas), time, belief))

    def _append(self, segment: Segment, tokens: Sequence[int]) -> None:
        self.segments.append(segment)
        self.tokens += tokens

"""What the layers of a transformer know of attention."""

from typing import Protocol

from torch import Tensor


class Plan(Protocol):
    """What every layer of one forward does alike: `attention.AttentionPlan`, `flex.FlexPlan`, or a cache's own."""

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Return softmax(q k / sqrt K) v under the layout: (N, H, K) and twice (N, kv heads, K) -> (N, H, K)."""

    def finish(self) -> None:
        """Record in the cache what the forward stored, once every layer has written it."""

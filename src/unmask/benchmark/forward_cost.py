"""What a forward must do and move, counted from the shape of the model; and the time that leaves it at least."""

from dataclasses import dataclass

from unmask.config import LINEAR_NAMES, TransformerConfig


@dataclass(frozen=True)
class ForwardShape:
    """One forward: `batch` rows, each with `queries` new tokens behind `context` cached ones, all with logits.

    The new tokens of a row see one another both ways, as a canvas does, or only backwards.
    """

    batch: int
    queries: int
    context: int
    causal: bool = False


@dataclass(frozen=True)
class Machine:
    """What a processor can do: operations per second of matrix products, bytes per second from memory."""

    name: str
    operations_per_s: float
    bytes_per_s: float

    @property
    def ridge(self) -> float:
        """Operations per byte above which it is arithmetic that takes the time."""
        return self.operations_per_s / self.bytes_per_s


@dataclass(frozen=True)
class ForwardCost:
    """`operations`: multiplications and additions of all matrix products. `num_bytes`: weights, keys and values.

    Every weight is read once, of the embeddings the rows of the new tokens. Cached keys and values are read once per
    row, new ones written once. Norms, activations, softmax and what passes between layers are left out: they are few,
    or stay in caches.
    """

    operations: float
    num_bytes: float

    @classmethod
    def of(cls, config: TransformerConfig, shape: ForwardShape, *, bytes_per_number: float) -> "ForwardCost":
        """Count one forward."""
        tokens, layers = shape.batch * shape.queries, config.num_layers
        maps = sum(inner * outer for inner, outer in map(config.linear_shape, LINEAR_NAMES))
        head = config.vocab_size * config.hidden_size
        own = shape.queries * (shape.queries + 1) // 2 if shape.causal else shape.queries**2
        pairs = shape.batch * (shape.queries * shape.context + own)
        # Per pair and head, a score and a share of the values: two products of vectors of the head's size.
        attention = 4 * config.num_heads * config.head_size * pairs
        numbers = layers * maps + head + tokens * config.hidden_size
        cached = 2 * layers * config.num_kv_heads * config.head_size * (shape.batch * shape.context + tokens)
        return cls(
            2.0 * tokens * (layers * maps + head) + layers * attention, (numbers + cached) * bytes_per_number
        )

    @property
    def intensity(self) -> float:
        """Operations per byte."""
        return self.operations / self.num_bytes

    def floor_s(self, machine: Machine) -> float:
        """Return the least seconds that a machine needs: for the arithmetic, or for the bytes, whichever is more."""
        return max(self.operations / machine.operations_per_s, self.num_bytes / machine.bytes_per_s)

"""A law over all V^L sequences, and every quantity of diffusion by writing out the sums."""

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from unmask.diffusion import Prediction, Process

Predictor = Callable[[Tensor, Tensor], Tensor]
"""Noisy tokens (M, L) at times (...) -> log-probabilities, (..., M, L, K) or (M, L, K) at all times alike."""


@dataclass(frozen=True, eq=False)
class Table:
    """The law `chances` (V^L,) of sequences of L tokens, in lexicographic order."""

    vocab_size: int
    length: int
    chances: Tensor

    @classmethod
    def random(cls, vocab_size: int, length: int, seed: int = 0) -> "Table":
        generator = torch.Generator().manual_seed(seed)
        logits = torch.randn(vocab_size**length, dtype=torch.float64, generator=generator)
        return cls(vocab_size, length, (1.5 * logits).softmax(-1))

    @cached_property
    def sequences(self) -> Tensor:
        return every_sequence(self.vocab_size, self.length)

    @cached_property
    def entropy(self) -> float:
        return float(torch.special.entr(self.chances).sum())

    @cached_property
    def one_hot(self) -> Tensor:
        return F.one_hot(self.sequences, self.vocab_size).double()

    @cached_property
    def marginals(self) -> Tensor:
        """(L, K): the law of each token."""
        return torch.einsum("x,xlk->lk", self.chances, self.one_hot)

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        return self.sequences[torch.multinomial(self.chances, count, replacement=True, generator=generator)]

    def joint(self, process: Process, noisy: Tensor, t: Tensor) -> Tensor:
        """Return p(x) q(z | x) at times (...) for M noisy sequences: (..., M, V^L)."""
        return self.chances * self._factors(process, noisy, t).prod(-1)

    def predict(self, process: Process, noisy: Tensor, t: Tensor, kind: Prediction) -> Tensor:
        """Return the exact law of every token, -inf for the impossible: (..., M, L, K)."""
        factors = self._factors(process, noisy, t)
        if kind == "posterior":
            weights = (self.chances * factors.prod(-1))[..., None].expand_as(factors)
        else:
            others = [
                factors[..., [j for j in range(self.length) if j != i]].prod(-1) for i in range(self.length)
            ]
            weights = self.chances[:, None] * torch.stack(others, -1)
        laws = torch.einsum("...mxl,xlk->...mlk", weights, self.one_hot)
        # Noisy sequences that cannot be have no law; a uniform one keeps nan out of sums that they do not enter.
        total = laws.sum(-1, keepdim=True)
        return torch.where(total > 0, laws / total, 1 / self.vocab_size).log()

    def exact(self, process: Process, kind: Prediction | None = None) -> Predictor:
        wanted = kind or process.prediction
        return lambda noisy, t: self.predict(process, noisy, t, wanted)

    def independent(self) -> Predictor:
        """Return the predictor that knows each token's own law and nothing else."""
        return lambda noisy, t: self.marginals.log().expand(len(noisy), -1, -1)

    def blocks(self, block_length: int) -> Iterator[tuple[float, "Table"]]:
        """Yield (chance, law of a block) for every block and every value of the tokens before it."""
        shape = [self.vocab_size] * self.length
        for start in range(0, self.length, block_length):
            size = min(block_length, self.length - start)
            law = (
                self.chances.reshape(shape).reshape(self.vocab_size**start, self.vocab_size**size, -1).sum(-1)
            )
            for row in law:
                yield float(row.sum()), Table(self.vocab_size, size, row / row.sum())

    def integrand(self, process: Process, predictor: Predictor, t: Tensor) -> Tensor:
        """Return the mean of the bound's integrand at times (...): nats per sequence, (...)."""
        joint, prediction, x0, xt = self._pairs(process, predictor, t)
        nats = process.nll(prediction, x0, xt, t[..., None, None, None]).sum(-1)
        return (joint * nats.where(joint > 0, 0)).sum((-1, -2))

    def reconstruction(self, process: Process, predictor: Predictor) -> float:
        start = torch.zeros((), dtype=torch.float64)
        joint, prediction, x0, xt = self._pairs(process, predictor, start)
        nats = process.cross_entropy(prediction, x0, xt, start, source=process.prediction).sum(-1)
        return float((joint * nats.where(joint > 0, 0)).sum())

    def bound(self, process: Process, predictor: Predictor) -> float:
        """Return the whole negative evidence lower bound: nats per sequence."""
        nodes, weights = quadrature()
        diffusion = float((weights * self.integrand(process, predictor, nodes)).sum())
        prior = float((self.chances[:, None] * process.prior_nll(self.sequences)).sum())
        return prior + diffusion + self.reconstruction(process, predictor)

    def _pairs(self, process: Process, predictor: Predictor, t: Tensor) -> tuple[Tensor, ...]:
        """Return every noisy sequence with every clean one: joint, prediction, x0, xt."""
        noisy = every_sequence(process.num_states, self.length)
        joint = self.joint(process, noisy, t)
        shape = (*joint.shape, self.length)
        prediction = predictor(noisy, t)[..., None, :, :].expand(*shape, self.vocab_size)
        return joint, prediction, self.sequences.expand(shape), noisy[:, None].expand(shape)

    def _factors(self, process: Process, noisy: Tensor, t: Tensor) -> Tensor:
        """Return q(z_i | x_i): (..., M, V^L, L)."""
        law = process.marginal(torch.arange(self.vocab_size).expand(*t.shape, -1), t[..., None])
        return law[..., self.sequences[None], noisy[:, None]]


def every_sequence(num_values: int, length: int) -> Tensor:
    return torch.tensor(list(itertools.product(range(num_values), repeat=length)))


def quadrature() -> tuple[Tensor, Tensor]:
    """Return nodes and weights on (0, 1); tanh-sinh, for integrands that are singular at the ends."""
    grid = torch.arange(-36, 25, dtype=torch.float64) / 8
    nodes = (math.pi * grid.sinh()).sigmoid()
    return nodes, math.pi * grid.cosh() * nodes * (1 - nodes) / 8


def prior_law(process: Process, length: int) -> Tensor:
    """Return the prior of whole noisy sequences, in the order of `every_sequence`: (S^L,)."""
    one = process.marginal(torch.arange(process.vocab_size), torch.ones(())).mean(0)
    return one[every_sequence(process.num_states, length)].prod(-1)


def ancestral_law(process: Process, predictor: Predictor, length: int, num_steps: int) -> Tensor:
    """Return the law of what ancestral sampling ends with, by products of whole transition matrices: (S^L,)."""
    states = every_sequence(process.num_states, length)
    law = prior_law(process, length)
    times = torch.linspace(1, 0, num_steps + 1, dtype=torch.float64)
    for t, s in itertools.pairwise(times):
        steps = process.posterior(predictor(states, t), states, s, t)  # (S^L, L, S)
        whole = steps[:, torch.arange(length), states].prod(-1)
        law = law @ whole
    return law


def divergence(table: Table, law: Tensor, num_states: int) -> float:
    """Return KL(table || law) of a law over states; mass off the clean sequences is lost to it."""
    places = num_states ** torch.arange(table.length - 1, -1, -1)
    found = law[(table.sequences * places).sum(-1)]
    return float((table.chances * (table.chances / found).log()).sum())

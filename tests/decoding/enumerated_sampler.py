"""The law of a kernel sampler by products of whole transition matrices, and denoisers that read a table."""

import torch
from enumerated import Predictor, Table, every_sequence, prior_law
from torch import Tensor

from unmask.decoding.candidates import Keys, Shape
from unmask.decoding.sampler import Kernel, Look, Move
from unmask.diffusion import DenoiserFunction, Masked, Prediction, Process


def look_of(
    process: Process, tokens: Tensor, logits: Tensor, move: Move, *, steps_left: int = 2, seed: int = 0
) -> Look:
    """Return the look at (B, L) tokens, all of them free, after a forward that gave these logits."""
    rows, length = tokens.shape
    return Look(
        process=process,
        tokens=tokens,
        free=torch.ones_like(tokens, dtype=torch.bool),
        time=torch.full((rows, 1), move.t, dtype=torch.float64),
        move=move,
        logits=logits,
        kind=process.prediction,
        shape=Shape(),
        confidence=torch.full(tokens.shape, 0.5),
        steady=torch.zeros_like(tokens),
        changes=torch.zeros(rows, length, 0),
        keys=Keys(tuple(range(seed, seed + rows)), torch.arange(length).expand(rows, -1), (1,) * rows),
        steps_left=steps_left,
    )


def chain(
    sampler: Kernel, process: Process, predictor: Predictor, length: int, moves: list[Move]
) -> list[Tensor]:
    """Return the law of the canvas (S^L,) after each of the moves."""
    states, law, now = every_sequence(process.num_states, length), prior_law(process, length), 1.0
    laws = []
    for move in moves:
        if move.t > now:
            times = torch.tensor([now, move.t], dtype=torch.float64)
            law = law @ joint(process.transition(states, *times), states)
        logits = predictor(states, torch.tensor(move.t, dtype=torch.float64))
        law = law @ joint(sampler.law(look_of(process, states, logits, move)), states)
        now = move.s
        laws.append(law)
    return laws


def joint(law: Tensor, states: Tensor) -> Tensor:
    """Multiply independent laws (M, L, S) to those of whole states: (M, S^L)."""
    return law[:, torch.arange(states.shape[1]), states].prod(-1)


def marginal(table: Table, process: Process, t: float) -> Tensor:
    """Return the true law of the noisy sequence at a time: (S^L,)."""
    states = every_sequence(process.num_states, table.length)
    return table.joint(process, states, torch.tensor(t, dtype=torch.float64)).sum(-1)


def denoiser_of(table: Table, process: Process, kind: Prediction | None = None) -> DenoiserFunction:
    """Return the exact denoiser; under masked noise it goes by the tokens alone, whatever the time."""
    wanted = kind or process.prediction
    places = range(table.length)

    def denoise(tokens: Tensor, time: Tensor, belief: Tensor | None = None) -> Tensor:
        moments = torch.full((1, 1), 0.5) if isinstance(process, Masked) else time[:, :1]
        noise = process.marginal(torch.arange(table.vocab_size).expand(len(tokens), -1), moments.double())
        factors = noise[torch.arange(len(tokens))[:, None, None], table.sequences, tokens[:, None]]
        kept = [[j for j in places if j != i or wanted == "posterior"] for i in places]
        weights = table.chances[:, None] * torch.stack([factors[..., one].prod(-1) for one in kept], -1)
        return torch.einsum("mxl,xlk->mlk", weights, table.one_hot).log()

    return denoise

"""Exact likelihoods along the causal stream, many continuations in one forward."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from unmask.decoding.language_model import LanguageModel
from unmask.decoding.options import Options
from unmask.errors import UsageError
from unmask.evaluation.continuations import Continuation, Likelihood
from unmask.evaluation.prefix_tree import PackedTrees, pack
from unmask.evaluation.scoring import LogLikelihood
from unmask.model.denoiser import Denoiser

FORWARD_TOKENS = 1024
"""Most tokens in one forward, unless one sequence alone has more."""

_HEAD_ROWS = 256
"""States whose logits are held at once: with a vocabulary of 50,000 they take 50 MB."""


@dataclass(frozen=True)
class Autoregressive:
    """Log-likelihoods by the chain rule."""

    law: ClassVar[str] = "exact"

    def prepare(self, model: LanguageModel, options: Options) -> Likelihood:
        """Refuse a model that predicts no next tokens."""
        if not model.denoiser.predicts_next:
            raise UsageError(
                "likelihood 'ar': this model was not trained to predict next tokens",
                "choose another likelihood",
            )
        return AutoregressiveLikelihood(model.denoiser)


class AutoregressiveLikelihood:
    """Log-likelihoods by the chain rule; continuations that begin alike share the forward of their beginning."""

    def __init__(self, denoiser: Denoiser) -> None:
        self._denoiser = denoiser

    @torch.inference_mode()
    def __call__(self, continuations: Sequence[Continuation]) -> list[LogLikelihood]:
        """Return the likelihood of each, in order."""
        answers: dict[int, LogLikelihood] = {}
        for trees in pack([each.tokens[:-1] for each in continuations], max_tokens=FORWARD_TOKENS):
            numbers = list(trees.places)
            answers |= zip(numbers, self._forward(trees, [continuations[n] for n in numbers]), strict=True)
        return [answers[number] for number in range(len(continuations))]

    def _forward(self, trees: PackedTrees, continuations: Sequence[Continuation]) -> list[LogLikelihood]:
        """Run packed continuations, given in the order of their places."""
        denoiser, device = self._denoiser, self._denoiser.transformer.device
        hidden = denoiser.transformer(torch.tensor(trees.tokens, device=device), trees.layout)
        counts = [each.num_scored for each in continuations]
        ends = [path[-count:] for path, count in zip(trees.places.values(), counts, strict=True)]
        states = hidden[torch.from_numpy(np.concatenate(ends)).to(device)]
        targets = torch.tensor([token for each in continuations for token in each.scored], device=device)
        nats, hits = [], []
        for rows, wanted in zip(
            torch.split(states, _HEAD_ROWS), torch.split(targets, _HEAD_ROWS), strict=True
        ):
            logits = denoiser.head(rows)
            chosen = logits.gather(1, wanted[:, None])[:, 0]
            nats.append((chosen - logits.logsumexp(1)).double())
            hits.append(logits.argmax(1) == wanted)
        parts = zip(torch.split(torch.cat(nats), counts), torch.split(torch.cat(hits), counts), strict=True)
        return [LogLikelihood(float(own.sum()), bool(all_hit.all()), len(own)) for own, all_hit in parts]

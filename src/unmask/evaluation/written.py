"""What samples are worth: bits under a judge, and beside them entropy and repetition, or the bits say little."""

import math
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from unmask.decoding.language_model import LanguageModel
from unmask.decoding.options import Options
from unmask.evaluation.model_scorer import ModelScorer
from unmask.layout import Layout, Segment
from unmask.model.denoiser import Denoiser


@torch.no_grad()
def judged_bits(judge: Denoiser, tokens: Tensor) -> Tensor:
    """Return the bits per token of each row of `tokens` (B, L) after its first, under a causal model: (B,)."""
    rows, length = tokens.shape
    transformer = judge.transformer
    hidden = transformer(tokens.flatten(), Layout([Segment(0, length)] * rows)).view(rows, length, -1)
    laws = transformer.logits(hidden[:, :-1].flatten(0, 1)).log_softmax(-1).view(rows, length - 1, -1)
    return -laws.gather(-1, tokens[:, 1:, None])[..., 0].double().mean(-1) / math.log(2)


def judged_bits_per_byte(judge: LanguageModel, texts: Sequence[str]) -> list[float]:
    """Return the bits per byte of each text under a causal model of any tokenizer; empty texts are left out."""
    scorer = ModelScorer(judge, Options())
    told = [text for text in texts if text.strip()]
    answers = scorer.loglikelihood_rolling(told)
    return [
        -answer.nats / math.log(2) / len(text.encode()) for answer, text in zip(answers, told, strict=True)
    ]


def unigram_entropy(tokens: Tensor) -> Tensor:
    """Return the entropy of each row's own counts of tokens (B, L), in bits: (B,)."""
    entropies = []
    for row in tokens.tolist():
        counts = torch.tensor(list(Counter(row).values()), dtype=torch.float64)
        entropies.append(torch.special.entr(counts / counts.sum()).sum() / math.log(2))
    return torch.stack(entropies)


def distinct_pairs(tokens: Tensor) -> float:
    """Return the share of pairs of neighbours that are not repetitions, over all rows of tokens (B, L) together."""
    pairs = Counter(pair for row in tokens.tolist() for pair in pairwise(row))
    return len(pairs) / pairs.total()

"""What a denoiser is, and the two kinds of law it may predict."""

from typing import Literal, Protocol

from torch import Tensor

Prediction = Literal["posterior", "leave_one_out"]
"""Which law of the clean token x_i a prediction is.

`posterior`: p(x_i | z), given all noisy tokens. Cross-entropy training gives it.
`leave_one_out`: p(x_i | z without z_i). The bound of uniform and hybrid noise, and their ancestral sampler, are
exact with it and plainly wrong with the posterior. Under masked noise the two agree at every masked position.
"""


class DenoiserFunction(Protocol):
    """Noisy tokens to laws of the clean token at the same position."""

    def __call__(self, tokens: Tensor, time: Tensor, belief: Tensor | None = None, /) -> Tensor:
        """Return logits (B, L, K) for noisy `tokens` (B, L) at `time` (B, 1) or (B, L), float64.

        `belief` (B, L, K): probabilities of an earlier prediction (self-conditioning; Chen et al. 2022,
        arXiv 2208.04202), rows of zeros where there is none. A denoiser without that port does not look at it.
        """

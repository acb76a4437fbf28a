"""Few steps: a student that says from any noise where its teacher's probability flow ends."""

import torch
from torch import Tensor

from unmask.diffusion.gaussian import Gaussian, GaussianDenoiser
from unmask.diffusion.gaussian_objective import (
    GaussianNoised,
    given_rows,
    noise_rows,
    told_levels,
)
from unmask.diffusion.objective import LossOutput, own_beliefs
from unmask.diffusion.times import stratified_times

_LEAST = -1e4
"""Of a logarithm, so that nothing times minus infinity is nothing."""


def flow_end_loss(
    student: GaussianDenoiser,
    teacher: GaussianDenoiser,
    x0: Tensor,
    process: Gaussian,
    generator: torch.Generator,
    *,
    num_steps: int,
    trained: Tensor | None = None,
    noise_share: float = 0.25,
    belief_share: float = 0.0,
) -> LossOutput:
    """Noise clean rows (B, L), let the teacher's flow run to its end from there, and ask the student for that end.

    A sum in nats over the noised tokens: the cross-entropy of the student's law to the last one of the teacher. The
    flow is deterministic, so tokens that the teacher would write together follow from the same noise, and a student
    of independent tokens can write them together in one forward: that law of a token given the noise has no spread to
    be independent in (a consistency model by simulation: Luhman and Luhman 2021, arXiv 2101.02388; Song et al. 2023,
    arXiv 2303.01469). `num_steps`: forwards of the teacher. `noise_share`: share of the rows that start from noise
    alone, where every generation does; the others have uniform times. `trained` (B, L) bool and `belief_share`, of the
    student: as in `gaussian_loss`.
    """
    trained = torch.ones_like(x0, dtype=torch.bool) if trained is None else trained
    t = stratified_times(len(x0), generator).to(x0.device)
    t = (t / (1 - noise_share)).clamp_max(1.0)
    noised = noise_rows(x0, process, t, process.schedule.gamma(t).detach(), generator, trained=trained)
    end = flow_end(teacher, x0, noised, process, num_steps=num_steps).softmax(-1)
    belief = own_beliefs(lambda: student(noised.z, noised.gamma), belief_share, generator)
    logits = student(noised.z, noised.gamma, belief)
    logs = logits.log_softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))
    losses = -(end.to(logs.dtype) * logs.clamp_min(_LEAST)).sum(-1)
    return LossOutput(losses.where(trained, 0).sum(), int(trained.sum()))


@torch.no_grad()
def flow_end(
    teacher: GaussianDenoiser, x0: Tensor, noised: GaussianNoised, process: Gaussian, *, num_steps: int
) -> Tensor:
    """Follow the teacher's flow from rows at times of their own to time 0; return its last logits (B, L, K).

    Evenly in time, each step along the line through this mean and the last (as `multistep` does). What is not
    trained stays as it is shown; every law is the next forward's belief.
    """
    shown, (low, _) = given_rows(x0, process), process.schedule.ends()
    z, belief, before = noised.z, None, None
    for step in range(num_steps):
        gamma, target = (
            process.schedule.gamma(noised.t * (1 - place / num_steps))[:, None] for place in (step, step + 1)
        )
        logits = teacher(z, told_levels(gamma, noised.trained, low), belief)
        belief = logits.softmax(-1)
        here = mean = process.mean(belief)
        if before is not None:
            last, last_gamma = before
            reach = (gamma - target) / (last_gamma - gamma) * process.lean(gamma, target)
            mean = here + reach[..., None].to(here.dtype) * (here - last)
        z = torch.where(noised.trained[..., None], process.flow(z, mean, gamma, target), shown)
        before = here, gamma
    return logits

"""The mathematics of discrete diffusion: schedules, noise processes, bounds; no model, no sampler."""

from unmask.diffusion.denoising import DenoiserFunction, Prediction
from unmask.diffusion.hybrid import Hybrid
from unmask.diffusion.masked import Masked
from unmask.diffusion.objective import LossOutput, Weighting, diffusion_loss, token_losses
from unmask.diffusion.process import PROCESSES, Process, build_process
from unmask.diffusion.schedule import SCHEDULES, Schedule
from unmask.diffusion.times import TIMES, ExactCount, Independent, LowDiscrepancy, Noised, TimeSampling
from unmask.diffusion.uniform import Uniform

__all__ = [
    "PROCESSES",
    "SCHEDULES",
    "TIMES",
    "DenoiserFunction",
    "ExactCount",
    "Hybrid",
    "Independent",
    "LossOutput",
    "LowDiscrepancy",
    "Masked",
    "Noised",
    "Prediction",
    "Process",
    "Schedule",
    "TimeSampling",
    "Uniform",
    "Weighting",
    "build_process",
    "diffusion_loss",
    "token_losses",
]

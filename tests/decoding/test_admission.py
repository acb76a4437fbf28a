"""Refusals name a way out, and that way is open."""

from dataclasses import replace

import pytest
import torch

from random_denoisers import SYMBOLS, prompt_of, random_denoiser
from unmask.decoding.admission import admit, default_sampler
from unmask.decoding.constraint import Constraint
from unmask.decoding.gaussian_samplers import Multistep
from unmask.decoding.options import Options
from unmask.decoding.rules import Threshold
from unmask.decoding.samplers import Ancestral, PredictorCorrector
from unmask.diffusion.gaussian_schedule import GAUSSIAN_SCHEDULES
from unmask.diffusion.masked import Masked
from unmask.diffusion.schedule import Linear
from unmask.diffusion.uniform import Uniform
from unmask.errors import UsageError
from unmask.model.continuous import TokenVectors
from unmask.model.denoiser import Denoiser

SIZE = len(SYMBOLS)
PLAIN = random_denoiser(has_adapter=False)
MODELS: dict[str, Denoiser] = {
    "ar": PLAIN,
    "converted": random_denoiser(),
    "masked": replace(random_denoiser(), process=Masked(SIZE, SIZE, Linear()), predicts_next=False),
    "uniform": replace(PLAIN, process=Uniform(SIZE, None, Linear()), predicts_next=False),
    "continuous": replace(
        PLAIN,
        vectors=TokenVectors.initialise(
            SIZE, 4, 16, GAUSSIAN_SCHEDULES.parse("linear"), torch.Generator().manual_seed(0)
        ),
        predicts_next=False,
    ),
}
PENALTY = {"presence_penalty": 0.5}
CONSTRAINT = {"constraint": Constraint("regex", "a*")}
WITHOUT_PENALTY, WITHOUT_CONSTRAINT = {"presence_penalty": 0.0}, {"constraint": None}


@pytest.mark.parametrize(
    ("model", "options", "remedy", "followed"),
    [
        ("ar", {"mode": "diffusion"}, "use mode 'ar'", {"mode": "ar"}),
        ("ar", {"mode": "speculative"}, "use mode 'ar'", {"mode": "ar"}),
        ("uniform", {"mode": "speculative"}, "use mode 'diffusion'", {"mode": "diffusion"}),
        ("continuous", {"mode": "speculative"}, "use mode 'diffusion'", {"mode": "diffusion"}),
        ("masked", {"mode": "ar"}, "use mode 'diffusion'", {"mode": "diffusion"}),
        ("continuous", {"mode": "ar"}, "use mode 'diffusion'", {"mode": "diffusion"}),
        ("converted", {"sampler": Ancestral()}, "give a rule", {"sampler": None, "rule": Threshold()}),
        ("masked", {"sampler": Multistep()}, "choose another", {"sampler": Ancestral()}),
        ("masked", {"sampler": Multistep()}, "leave it out", {"sampler": None}),
        ("continuous", {"rule": Threshold()}, "leave it out", {"rule": None}),
        ("continuous", {"rule": Threshold()}, "give a sampler", {"rule": None, "sampler": Ancestral()}),
        ("continuous", {"sampler": PredictorCorrector()}, "multistep", {"sampler": Multistep()}),
        ("continuous", PENALTY, "leave it out", WITHOUT_PENALTY),
        ("continuous", CONSTRAINT, "leave it out", WITHOUT_CONSTRAINT),
        ("uniform", PENALTY, "leave it out", WITHOUT_PENALTY),
        ("uniform", CONSTRAINT, "leave it out", WITHOUT_CONSTRAINT),
        ("uniform", {"rule": Threshold(), **PENALTY}, "leave them out", WITHOUT_PENALTY),
    ],
)
def test_a_remedy_is_accepted(
    model: str, options: dict[str, object], remedy: str, followed: dict[str, object]
) -> None:
    denoiser = MODELS[model]

    def ask(changes: dict[str, object]) -> int:
        wanted = Options(**{"mode": "diffusion", **changes})  # type: ignore[arg-type]
        sampler = default_sampler(denoiser)
        return admit(
            denoiser, prompt_of(0), wanted.resolve(block_length=4, stop_token_ids=(0,), sampler=sampler)
        )

    with pytest.raises(UsageError, match=remedy):
        ask(options)
    assert ask({**options, **followed})

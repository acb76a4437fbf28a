"""Compute the figures of docs/diffusion.md and docs/sampling.md that have no noise in them.

    python benchmarks/exact.py

Every sum is written out: over all sequences, all noisy sequences and all times. The laws and the sums are those of the
tests, in tests/diffusion/enumerated.py and tests/decoding/enumerated_sampler.py. Writes benchmarks/exact.json.
"""

import json
import sys
from pathlib import Path
from statistics import mean, stdev

import torch

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "tests" / part) for part in ("diffusion", "decoding")]

from enumerated import Table, ancestral_law, divergence  # noqa: E402
from enumerated_sampler import chain  # noqa: E402

from unmask.decoding.samplers import parse_sampler  # noqa: E402
from unmask.diffusion import orders  # noqa: E402
from unmask.diffusion.markov import MarkovChain  # noqa: E402
from unmask.diffusion.process import build_process  # noqa: E402
from unmask.diffusion.schedule import SCHEDULES  # noqa: E402
from unmask.evaluation.provenance import provenance  # noqa: E402

FORWARDS = (8, 16, 32, 64, 128)
SAMPLERS = (
    ("masked", "linear", "ancestral"),
    ("masked", "linear", "predictor-corrector"),
    ("masked", "linear", "remdm-rescale:0.5"),
    ("masked", "linear", "remdm-cap:0.3"),
    ("uniform", "linear", "ancestral"),
    ("hybrid:0.3", "linear", "ancestral"),
    ("hybrid:0.3", "polynomial:2", "ancestral"),
)
FLIP, LENGTH, ROUNDS, SHUFFLES = 0.1, 64, (4, 8, 16, 32), 100


def kinds_of_prediction() -> dict[str, float]:
    """Return the bound of uniform noise with either kind of exact law, and what ancestral sampling stays away."""
    process = build_process("uniform", 3, None, SCHEDULES.parse("linear"))
    table, pair = Table.random(3, 3), Table.random(3, 2)
    written = ancestral_law(process, pair.exact(process, "posterior"), pair.length, 256)
    return {
        "entropy": table.entropy,
        "bound, leave one out": table.bound(process, table.exact(process, "leave_one_out")),
        "bound, posterior": table.bound(process, table.exact(process, "posterior")),
        "divergence of 256 ancestral steps, posterior": divergence(pair, written, process.num_states),
    }


def sampler_divergences() -> list[dict[str, object]]:
    """Return KL(data || what a sampler writes) for three binary tokens and the exact denoiser, in nats."""
    table, rows = Table.random(2, 3), []
    for noise, schedule, name in SAMPLERS:
        process = build_process(noise, 2, None if noise == "uniform" else 2, SCHEDULES.parse(schedule))
        sampler, values = parse_sampler(name), []
        for steps in FORWARDS:
            moves = sampler.moves(steps, process.schedule)
            law = chain(sampler, process, table.exact(process), table.length, moves)[-1]
            values.append(divergence(table, law, process.num_states))
        rows.append({"process": noise, "schedule": schedule, "sampler": name, "nats": values})
    return rows


def schedule_divergences() -> dict[str, object]:
    """Return what it costs to decode a symmetric two-state chain round by round, in nats."""
    flips = torch.tensor([[1 - FLIP, FLIP], [FLIP, 1 - FLIP]], dtype=torch.float64)
    law, generator = MarkovChain.stationary(flips), torch.Generator().manual_seed(0)
    random = [
        [law.schedule_kl(orders.shuffled(LENGTH, rounds, generator)) for _ in range(SHUFFLES)]
        for rounds in ROUNDS
    ]
    return {
        "rounds": list(ROUNDS),
        "left to right": [law.schedule_kl(orders.left_to_right(LENGTH, rounds)) for rounds in ROUNDS],
        "random, mean": [mean(values) for values in random],
        "random, standard error": [stdev(values) / SHUFFLES**0.5 for values in random],
        "strided": [law.schedule_kl(orders.strided(LENGTH, rounds)) for rounds in ROUNDS],
        "bisection": {str(len(orders.bisection(LENGTH))): law.schedule_kl(orders.bisection(LENGTH))},
    }


def main() -> None:
    report = {
        "provenance": provenance(torch.device("cpu"), torch.float64),
        "kinds of prediction": kinds_of_prediction(),
        "forwards": list(FORWARDS),
        "samplers": sampler_divergences(),
        "Markov chain": schedule_divergences(),
    }
    text = json.dumps(report, indent=1) + "\n"
    (ROOT / "benchmarks" / "exact.json").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()

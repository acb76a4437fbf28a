"""Train small models on a Markov chain, whose entropy is known, and see how near their bounds come.

    python benchmarks/markov.py [--steps 1200] [--batches 60] [--cases masked uniform]

One transformer for each objective, same size, same number of sequences. The bound of each is measured on fresh
sequences, with its standard error, beside the chain's entropy rate: a perfect model costs exactly that. For the masked
model the error of parallel decoding is measured too: the KL divergence from the chain to what it writes in so many
rounds, by exact likelihood, beside the closed form of a perfect denoiser. Of the continuous model pairs and triples of
what it writes are compared with the chain's by a chi-square, and so is what a perfect denoiser writes. Writes
benchmarks/markov.json and .png; cases that are not named keep what the report has of them.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch

from unmask.config import TransformerConfig
from unmask.decoding.gaussian_samplers import GAUSSIAN_SAMPLERS
from unmask.decoding.gaussian_sampling import gaussian_sample
from unmask.diffusion.gaussian import GaussianDenoiser
from unmask.diffusion.gaussian_schedule import GAUSSIAN_SCHEDULES
from unmask.diffusion.markov import ChiSquare, MarkovChain
from unmask.diffusion.process import build_process
from unmask.diffusion.schedule import SCHEDULES
from unmask.diffusion.times import ExactCount
from unmask.evaluation.provenance import provenance
from unmask.model.conditioning import Conditioning
from unmask.model.continuous import GAUSSIAN, TokenVectors
from unmask.model.denoiser import Denoiser
from unmask.runtime import thread_count, tune_allocator
from unmask.training.average import WeightAverage
from unmask.training.batches import Batch
from unmask.training.config import AdamWTable, MuonTable
from unmask.training.continuous import ContinuousObjective
from unmask.training.initialisation import random_transformer
from unmask.training.learner import Network
from unmask.training.learning_rate import WarmupStableDecay
from unmask.training.loss import optimised
from unmask.training.objectives import DIFFUSION, NEXT_TOKEN, NoiseConfig, Objective
from unmask.training.optimizers import build_optimizers, set_learning_rate
from unmask.training.streams import Cuts

HERE = Path(__file__).parent
ROWS = 64
SEED = 0
LOSSES = {NEXT_TOKEN: "next token", DIFFUSION: "diffusion"}


@dataclass(frozen=True)
class Case:
    """One objective. Without a process: next tokens only."""

    name: str
    process: str | None = None
    schedule: str = "linear"
    cuts: Cuts | None = None
    next_token: bool = False
    time_port: bool = False
    table: AdamWTable | None = None
    """Its optimiser; without, plain AdamW."""


CASES = (
    Case("ar", next_token=True),
    Case("masked", "masked"),
    Case("block 4", "masked", cuts=Cuts((4,))),
    Case("joint 4", "masked", cuts=Cuts((4,)), next_token=True),
    # With a linear schedule the estimates of these two have no finite variance: docs/diffusion.md.
    Case("uniform", "uniform", "polynomial:2", time_port=True),
    Case("hybrid 0.2", "hybrid:0.2", "polynomial:4", time_port=True),
    Case(
        "continuous",
        GAUSSIAN,
        "learned:-6,6",
        time_port=True,
        table=MuonTable(learning_rate=3e-3, warmup_steps=50, decay_share=0.5, average_decay=0.999),
    ),
)
VECTOR_SIZE = 8
WRITTEN = 300


@dataclass(frozen=True)
class Bound:
    """Nats per token, with the standard error over sequences."""

    objective: str
    loss: str
    nats: float
    standard_error: float
    over_entropy: float
    steps: int
    seconds: float


def build(
    case: Case, vocab_size: int, length: int, generator: torch.Generator
) -> Objective | ContinuousObjective:
    """Return a small random model with its objective; the mask, if any, follows the vocabulary."""
    noise, mask, vectors = None, None, None
    if case.process == GAUSSIAN:
        schedule = GAUSSIAN_SCHEDULES.parse(case.schedule)
        vectors = TokenVectors.initialise(vocab_size, VECTOR_SIZE, 64, schedule, generator)
    elif case.process is not None:
        process = build_process(case.process, vocab_size, vocab_size, SCHEDULES.parse(case.schedule))
        noise, mask = NoiseConfig(process, case.cuts), process.mask_token_id
    config = TransformerConfig(
        vocab_size=vocab_size + (mask is not None),
        hidden_size=64,
        num_layers=3,
        num_heads=4,
        num_kv_heads=4,
        head_size=16,
        intermediate_size=192,
        max_positions=length + 1,
        tie_embeddings=True,
        qk_norm=True,
    )
    ports = Conditioning.initialise(64, generator, time=True, belief=False) if case.time_port else None
    denoiser = Denoiser(
        random_transformer(config, generator),
        mask_token_id=mask,
        logit_shift=False,
        conditioning=ports,
        vectors=vectors,
    )
    return Objective(denoiser, case.next_token, noise) if vectors is None else ContinuousObjective(denoiser)


def train(
    case: Case,
    objective: Objective | ContinuousObjective,
    draw: Callable[[], Batch],
    steps: int,
    generator: torch.Generator,
) -> None:
    denoiser = objective.denoiser
    network = Network(denoiser.transformer, denoiser.conditioning, denoiser.vectors)
    parameters = list(network.parameters())
    rates = WarmupStableDecay(3e-3, warmup_steps=50, decay_share=0.5)
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(parameters, betas=(0.9, 0.95), weight_decay=0.01)
    ]
    average = None
    if case.table is not None:
        rates, optimizers = case.table.learning_rates, build_optimizers(network, case.table)
        average = WeightAverage(network, case.table.average_decay)
    for step in range(steps):
        set_learning_rate(optimizers, rates.at(step, step / steps))
        batch = draw()
        torch.autograd.backward(optimised(objective(batch, generator)) / batch.num_scored)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if average is not None:
            average.update(step)
    if average is not None:
        network.load_state_dict(average.weights, strict=False)


@torch.no_grad()
def measure(
    case: Case,
    objective: Objective | ContinuousObjective,
    draw: Callable[[], Batch],
    entropy: float,
    num_batches: int,
    steps: int,
    seconds: float,
) -> list[Bound]:
    """Return the bound of each loss over fresh batches."""
    if case.process == "masked":  # the estimator without the noise of the number of masks
        objective = replace(objective, noise=replace(objective.noise, times=ExactCount()))
    generator = torch.Generator().manual_seed(SEED + 1)
    values: dict[str, list[float]] = {}
    for _ in range(num_batches):
        for name, loss in objective(draw(), generator).items():
            if name in LOSSES:
                values.setdefault(name, []).append(float(loss.total) / loss.num_tokens)
    return [
        Bound(
            case.name,
            LOSSES[name],
            round(float(np.mean(means)), 5),
            round(float(np.std(means, ddof=1) / len(means) ** 0.5), 5),
            round(float(np.mean(means)) / entropy - 1, 5),
            steps,
            round(seconds, 1),
        )
        for name, means in values.items()
    ]


def schedules(length: int) -> dict[str, list[list[list[int]]]]:
    """Return ways to reveal positions 1..length in rounds, by name, from few rounds to many; position 0 is given."""
    counts = [count for count in (1, 2, 4, 8, 16, 32, 64) if count <= length]
    shuffled = np.random.default_rng(SEED).permutation(np.arange(1, length + 1)).tolist()
    return {
        "left to right": [np.array_split(range(1, length + 1), count) for count in counts],
        "random": [np.array_split(shuffled, count) for count in counts],
        "strided": [
            [list(range(1 + start, length + 1, count)) for start in range(count)] for count in counts
        ],
    }


@torch.no_grad()
def measured_kl(
    objective: Objective, chain: MarkovChain, tokens: torch.Tensor, rounds: list[list[int]]
) -> list[float]:
    """Return log p - log q of every sequence, where q is what the model writes in these rounds: exact."""
    mask = objective.denoiser.mask_token_id
    canvas = torch.full_like(tokens, mask)
    canvas[:, 0] = tokens[:, 0]
    written = torch.zeros(len(tokens), dtype=torch.float64)
    for places in map(list, rounds):
        logits = objective.denoiser.whole(canvas, torch.zeros(1, 1)).double().log_softmax(-1)
        written += logits[:, places].gather(-1, tokens[:, places, None]).sum((1, 2))
        canvas[:, places] = tokens[:, places]
    true = chain.log_prob(tokens) - chain.initial.log()[tokens[:, 0]]
    return (true - written).tolist()


def divergences(objective: Objective, chain: MarkovChain, length: int) -> list[dict[str, object]]:
    tokens = chain.sample(500, length + 1, torch.Generator().manual_seed(SEED + 2))
    rows = []
    for name, ways in schedules(length).items():
        for rounds in ways:
            values = measured_kl(objective, chain, tokens, rounds)
            exact = chain.schedule_kl([[0], *(sorted(map(int, places)) for places in rounds)])
            rows.append(
                {
                    "schedule": name,
                    "rounds": len(rounds),
                    "kl": round(float(np.mean(values)), 4),
                    "standard_error": round(float(np.std(values, ddof=1) / len(values) ** 0.5), 4),
                    "closed_form": round(exact, 4),
                }
            )
    return rows


def rounded(found: ChiSquare) -> dict[str, float]:
    return {
        "statistic": round(found.statistic, 1),
        "degrees": found.degrees,
        "p_value": round(found.p_value, 4),
    }


def written(objective: ContinuousObjective, chain: MarkovChain, length: int) -> list[dict[str, object]]:
    """Compare with the chain what the continuous model writes after a token of it, and what a perfect denoiser does."""
    informed = objective.denoiser.informed()
    process = informed.process
    tokens = chain.sample(WRITTEN, 1, torch.Generator().manual_seed(SEED + 3)).expand(-1, length + 1)
    free = torch.ones_like(tokens, dtype=torch.bool)
    free[:, 0] = False

    def perfect(
        noisy: torch.Tensor, gamma: torch.Tensor, belief: torch.Tensor | None = None, /
    ) -> torch.Tensor:
        return chain.predict(process.evidence(noisy, gamma).double().softmax(-1), "posterior")

    denoisers: dict[str, GaussianDenoiser] = {"trained": informed, "perfect": perfect}
    rows = []
    for (denoiser, predict), name, steps in product(
        denoisers.items(), ("multistep", "churn:1", "ancestral"), (8, 32, 128)
    ):
        found = gaussian_sample(
            predict,
            process,
            tokens,
            free,
            GAUSSIAN_SAMPLERS.parse(name),
            steps=steps,
            seeds=range(WRITTEN),
        ).tokens
        nats = -(chain.log_prob(found) - chain.initial.log()[found[:, 0]]) / length
        rows.append(
            {
                "denoiser": denoiser,
                "sampler": name,
                "steps": steps,
                "sequences": WRITTEN,
                "nats_per_token": round(float(nats.mean()), 4),
                "standard_error": round(float(nats.std() / WRITTEN**0.5), 4),
                "pairs": rounded(chain.chi_square(found, size=2)),
                "triples": rounded(chain.chi_square(found, size=3)),
            }
        )
        print(rows[-1], file=sys.stderr, flush=True)
    return rows


def draw_picture(bounds: list[Bound], rows: list[dict[str, object]], entropy: float, path: Path) -> None:
    mpl.use("agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4), layout="constrained")
    names = [f"{bound.objective}\n{bound.loss}" for bound in bounds]
    left.bar(names, [100 * bound.over_entropy for bound in bounds])
    left.errorbar(
        names,
        [100 * bound.over_entropy for bound in bounds],
        [100 * bound.standard_error / entropy for bound in bounds],
        fmt="none",
        color="k",
        lw=0.8,
    )
    left.axhline(2, color="0.6", lw=0.8, ls="--")
    left.set(ylabel="bound above the entropy, %")
    left.tick_params(axis="x", labelsize=7)
    for name in dict.fromkeys(row["schedule"] for row in rows):
        mine = [row for row in rows if row["schedule"] == name]
        rounds = [row["rounds"] for row in mine]
        (line,) = right.plot(rounds, [row["closed_form"] for row in mine], label=f"{name}, closed form")
        right.errorbar(
            rounds,
            [row["kl"] for row in mine],
            [row["standard_error"] for row in mine],
            fmt="o",
            ms=4,
            color=line.get_color(),
            label=f"{name}, trained model",
        )
    right.set(xscale="log", xlabel="rounds (forwards)", ylabel="KL of what is written, nats per sequence")
    right.legend(frameon=False, fontsize=7)
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--vocabulary", type=int, default=8)
    parser.add_argument("--length", type=int, default=32)
    parser.add_argument("--batches", type=int, default=60, help="batches of fresh sequences for a bound")
    parser.add_argument("--cases", nargs="+", choices=[case.name for case in CASES])
    arguments = parser.parse_args()
    tune_allocator()
    torch.set_num_threads(thread_count() or torch.get_num_threads())
    length = arguments.length
    chain = MarkovChain.random(arguments.vocabulary, torch.Generator().manual_seed(SEED))
    entropy = (chain.entropy(length + 1) - chain.entropy(1)) / length
    chosen = [case for case in CASES if not arguments.cases or case.name in arguments.cases]
    settings = {
        "vocabulary": arguments.vocabulary,
        "length": length,
        "sequences_per_step": ROWS,
    }
    old = json.loads((HERE / "markov.json").read_text()) if arguments.cases else {}
    if any(old.get(key, value) != value for key, value in settings.items()):
        raise SystemExit("markov.json is of other settings: run all cases")
    rows: list[dict[str, object]] = old.get("kl_of_schedules", [])
    sampled: list[dict[str, object]] = old.get("written_by_continuous", [])
    known = {(line["objective"], line["loss"]): Bound(**line) for line in old.get("bounds", [])}
    bounds_of = tuple(range(0, ROWS * (length + 1) + 1, length + 1))
    for case in chosen:
        source = torch.Generator().manual_seed(SEED)

        def draw(source: torch.Generator = source) -> Batch:
            return Batch(chain.sample(ROWS, length + 1, source).flatten(), bounds_of)

        generator = torch.Generator().manual_seed(SEED)
        objective = build(case, arguments.vocabulary, length, generator)
        began = time.perf_counter()
        train(case, objective, draw, arguments.steps, generator)
        for bound in measure(
            case, objective, draw, entropy, arguments.batches, arguments.steps, time.perf_counter() - began
        ):
            known[bound.objective, bound.loss] = bound
            print(bound, file=sys.stderr, flush=True)
        if case.name == "masked":
            rows = divergences(objective, chain, length)
        if isinstance(objective, ContinuousObjective):
            sampled = written(objective, chain, length)
    report = {
        "command": " ".join(["python", "benchmarks/markov.py", *sys.argv[1:]]),
        "machine": provenance(torch.device("cpu"), torch.float32),
        **settings,
        "entropy_nats_per_token": round(entropy, 5),
        "bounds": [asdict(bound) for bound in known.values()],
        "kl_of_schedules": rows,
        "written_by_continuous": sampled,
    }
    (HERE / "markov.json").write_text(json.dumps(report, indent=2) + "\n")
    draw_picture(list(known.values()), rows, entropy, HERE / "markov.png")


if __name__ == "__main__":
    main()

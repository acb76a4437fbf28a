"""Train small models on 4x4 sudoku, left to right and by diffusion, and count how many forwards a solution takes.

    python benchmarks/sudoku.py [--steps 1500] [--puzzles 20000]

Puzzles come from reasoning-gym's `mini_sudoku` (8 to 12 empty cells); a fifth of all solution boards is held out, and
only puzzles of those boards are tested. One transformer for each objective, same size, same puzzles, same steps. A
puzzle counts as solved when all sixteen cells are right. Writes benchmarks/sudoku.json and .png.
"""

import argparse
import hashlib
import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import matplotlib as mpl
import torch
from markov import train
from torch import Tensor

from unmask.config import TransformerConfig
from unmask.decoding.candidates import Shape
from unmask.decoding.samplers import parse_sampler
from unmask.decoding.sampling import sample
from unmask.diffusion.masked import Masked
from unmask.diffusion.schedule import Linear
from unmask.evaluation.provenance import provenance
from unmask.layout import Layout, Segment
from unmask.model.denoiser import Denoiser
from unmask.runtime import thread_count, tune_allocator
from unmask.training.batches import Batch
from unmask.training.initialisation import random_transformer
from unmask.training.objectives import NoiseConfig, Objective
from unmask.training.streams import Cuts

HERE = Path(__file__).parent
CELLS, BLANK, START, MASK = 16, 0, 5, 6
LENGTH = 1 + 2 * CELLS
"""A start token, the puzzle with its blanks, and the solution."""
ROWS, SEED = 64, 0
RULES = (
    "left-to-right:1",
    "random:1",
    "random:2",
    "random:4",
    "random:16",
    "top-k:1",
    "top-k:2",
    "top-k:4",
    "top-k:8",
    "margin:1",
    "threshold:0.99",
    "threshold:0.9",
    "threshold:0.7",
    "entropy-bound:0.01",
    "entropy-bound:0.1",
    "entropy-bound:1",
    "klass:0.9,0.01,2",
)
BLOCK = 4


@dataclass(frozen=True)
class Score:
    """How often a way of decoding solves a puzzle, with the standard error, and its mean number of forwards."""

    model: str
    rule: str
    solved: float
    standard_error: float
    forwards: float


def rows_of(puzzles: int, seed: int, *, held_out: bool) -> Tensor:
    """Return token rows (R, LENGTH) of puzzles whose board is, or is not, one of the held-out fifth."""
    import reasoning_gym

    rows = []
    for item in reasoning_gym.create_dataset("mini_sudoku", size=puzzles, seed=seed):
        data = item["metadata"]
        solution = [cell for line in data["solution"] for cell in line]
        digest = hashlib.sha256(bytes(solution)).digest()
        if (digest[0] % 5 == 0) == held_out:
            rows.append([START, *(cell for line in data["puzzle"] for cell in line), *solution])
    return torch.tensor(rows)


def build(name: str, generator: torch.Generator) -> Objective:
    config = TransformerConfig(
        vocab_size=MASK + 1,
        hidden_size=128,
        num_layers=4,
        num_heads=4,
        num_kv_heads=4,
        head_size=32,
        intermediate_size=352,
        max_positions=LENGTH,
        tie_embeddings=True,
        qk_norm=True,
    )
    denoiser = Denoiser(random_transformer(config, generator), mask_token_id=MASK, logit_shift=False)
    process = Masked(MASK, MASK, Linear())
    cuts = {"masked": None, "block": Cuts((BLOCK,))}
    return Objective(denoiser, name == "ar", None if name == "ar" else NoiseConfig(process, cuts[name]))


def score(model: str, rule: str, written: Tensor, truth: Tensor, forwards: Tensor) -> Score:
    solved = (written == truth).all(-1).double()
    error = float(solved.std() / len(solved) ** 0.5)
    return Score(
        model,
        rule,
        round(float(solved.mean()), 4),
        round(error, 4),
        round(float(forwards.double().mean()), 2),
    )


@torch.no_grad()
def left_to_right(denoiser: Denoiser, tests: Tensor) -> Score:
    """Write the most probable cell, one after the other."""
    tokens = tests[:, : 1 + CELLS]
    for _ in range(CELLS):
        rows, length = tokens.shape
        hidden = denoiser.transformer(tokens.flatten(), Layout([Segment(0, length)] * rows)).view(
            rows, length, -1
        )
        best = denoiser.transformer.logits(hidden[:, -1])[:, :MASK].argmax(-1)
        tokens = torch.cat([tokens, best[:, None]], dim=1)
    return score("ar", "greedy", tokens[:, -CELLS:], tests[:, -CELLS:], torch.full((1,), CELLS))


def whole(denoiser: Denoiser, tests: Tensor, rule: str) -> Score:
    """Fill all cells of the solution by a rule."""
    free = torch.arange(LENGTH).expand(tests.shape) > CELLS
    sampled = sample(
        denoiser.whole,
        Masked(MASK, MASK, Linear()),
        tests.masked_fill(free, BLANK),
        free,
        parse_sampler(rule),
        steps=CELLS,
        seeds=range(len(tests)),
        shape=Shape(temperature=0.0),
    )
    return score("masked", rule, sampled.tokens[:, -CELLS:], tests[:, -CELLS:], sampled.num_forwards)


def blocks(denoiser: Denoiser, tests: Tensor, rule: str) -> Score:
    """Fill the solution block by block, each after the cells before it."""
    tokens, forwards = tests[:, : 1 + CELLS], torch.zeros(len(tests))
    for _ in range(CELLS // BLOCK):
        before = tokens

        def denoise(
            canvas: Tensor, time: Tensor, belief: Tensor | None = None, before: Tensor = before
        ) -> Tensor:
            rows, known = before.shape
            segments = [
                segment
                for row in range(rows)
                for segment in (
                    Segment(0, known),
                    Segment(known, BLOCK, parent=2 * row, offset=known, causal=False),
                )
            ]
            packed = torch.cat([before, canvas], dim=1).flatten()
            hidden = denoiser.transformer(packed, Layout(segments)).view(rows, known + BLOCK, -1)
            return denoiser.transformer.logits(hidden[:, known:].flatten(0, 1))[:, :MASK].view(
                rows, BLOCK, -1
            )

        sampled = sample(
            denoise,
            Masked(MASK, MASK, Linear()),
            torch.zeros(len(tests), BLOCK, dtype=torch.int64),
            torch.ones(len(tests), BLOCK, dtype=torch.bool),
            parse_sampler(rule),
            steps=BLOCK,
            seeds=range(len(tests)),
            shape=Shape(temperature=0.0),
            start=before.shape[1],
        )
        tokens = torch.cat([before, sampled.tokens], dim=1)
        forwards += sampled.num_forwards
    return score("block", rule, tokens[:, -CELLS:], tests[:, -CELLS:], forwards)


def draw_picture(scores: list[Score], path: Path) -> None:
    mpl.use("agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(7.5, 4.5), layout="constrained")
    families = dict.fromkeys((one.model, one.rule.partition(":")[0]) for one in scores)
    for model, family in families:
        mine = sorted(
            (one for one in scores if (one.model, one.rule.partition(":")[0]) == (model, family)),
            key=lambda one: one.forwards,
        )
        axis.errorbar(
            [one.forwards for one in mine],
            [one.solved for one in mine],
            [one.standard_error for one in mine],
            fmt={"ar": "k*", "masked": "o-", "block": "s--"}[model],
            ms=10 if model == "ar" else 4,
            label=f"{model}, {family}",
        )
    axis.set(xlabel="forwards per puzzle", ylabel="puzzles solved", ylim=(0, 1.02), xlim=(0, None))
    axis.legend(frameon=False, fontsize=7, ncols=2)
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--puzzles", type=int, default=20_000)
    parser.add_argument("--tests", type=int, default=500)
    arguments = parser.parse_args()
    tune_allocator()
    torch.set_num_threads(thread_count() or torch.get_num_threads())
    training = rows_of(arguments.puzzles, SEED, held_out=False)
    tests = rows_of(10 * arguments.tests, SEED + 1, held_out=True)[: arguments.tests]
    prompt = (torch.arange(LENGTH) <= CELLS).repeat(ROWS)
    bounds = tuple(range(0, ROWS * LENGTH + 1, LENGTH))
    scores: list[Score] = []
    seconds: dict[str, float] = {}
    for name in ("ar", "masked", "block"):
        order = torch.Generator().manual_seed(SEED)

        def draw(order: torch.Generator = order) -> Batch:
            chosen = torch.randint(len(training), (ROWS,), generator=order)
            return Batch(training[chosen].flatten(), bounds, prompt)

        generator = torch.Generator().manual_seed(SEED)
        objective = build(name, generator)
        began = time.perf_counter()
        train(objective, draw, arguments.steps, generator)
        seconds[name] = round(time.perf_counter() - began, 1)
        if name == "ar":
            scores.append(left_to_right(objective.denoiser, tests))
        else:
            decode = whole if name == "masked" else blocks
            scores += [decode(objective.denoiser, tests, rule) for rule in RULES]
        print(
            name,
            seconds[name],
            max(one.solved for one in scores if one.model == name),
            file=sys.stderr,
            flush=True,
        )
    report = {
        "command": " ".join(["python", "benchmarks/sudoku.py", *sys.argv[1:]]),
        "machine": provenance(torch.device("cpu"), torch.float32),
        "steps": arguments.steps,
        "puzzles_per_step": ROWS,
        "training_puzzles": len(training),
        "test_puzzles": len(tests),
        "block_length": BLOCK,
        "training_seconds": seconds,
        "scores": [asdict(one) for one in scores],
    }
    (HERE / "sudoku.json").write_text(json.dumps(report, indent=2) + "\n")
    draw_picture(scores, HERE / "sudoku.png")


if __name__ == "__main__":
    main()

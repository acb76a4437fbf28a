"""One forward for two tokens that know all of each other: where independent tokens stop, and what noise does for them.

    python benchmarks/few_steps.py [--updates 400]

The law is 'New York' or 'San Diego', alike. Whatever writes both tokens independently in one forward is log 2 nats away
from it at least. A masked student sees two masks, always the same, and so has one law for both: the wall. A continuous
student sees noise, and learns from the exact denoiser where its probability flow ends: each noise has its own end. Both
are measured exactly but for the draws of the noise. Writes benchmarks/few_steps.json and .png.
"""

import argparse
import json
import math
import sys
from pathlib import Path

import matplotlib as mpl
import torch
from torch import Tensor, nn

from unmask.diffusion.flow_end import flow_end, flow_end_loss
from unmask.diffusion.gaussian import Gaussian
from unmask.diffusion.gaussian_objective import GaussianNoised
from unmask.diffusion.gaussian_schedule import LinearGamma
from unmask.diffusion.markov import MarkovChain
from unmask.evaluation.provenance import provenance

HERE = Path(__file__).parent
SEED = 0
ROWS, DRAWS = 128, 10_000
NEW, YORK, SAN, DIEGO = range(4)
TEMPLATES = ((NEW, YORK), (SAN, DIEGO))
PROCESS = Gaussian(
    torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]], dtype=torch.float64),
    LinearGamma(-6.0, 6.0),
)


def law() -> MarkovChain:
    transition = torch.eye(4, dtype=torch.float64)
    for first, second in TEMPLATES:
        transition[first] = transition[second]
    return MarkovChain(torch.tensor([0.5, 0.0, 0.5, 0.0], dtype=torch.float64), transition)


class Student(nn.Module):
    """Logits (B, 2, 4) of both tokens from the noise of both."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(5, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 8)
        )

    def forward(self, noisy: Tensor, gamma: Tensor, belief: Tensor | None = None, /) -> Tensor:
        features = torch.cat([noisy.flatten(1), gamma[:, :1] / 6], -1)
        return self.layers(features.float()).view(-1, 2, 4).double()


def divergence(laws: Tensor) -> float:
    """Return KL(templates || what is written) in nats, given the laws (M, 2, 4) of both tokens under M noises."""
    written = [float((laws[:, 0, first] * laws[:, 1, second]).mean()) for first, second in TEMPLATES]
    return round(-sum(math.log(2 * chance) for chance in written) / 2, 4)


def draw_picture(report: dict[str, object], path: Path) -> None:
    mpl.use("agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(6, 4), layout="constrained")
    for name in ("masked", "continuous"):
        axis.plot(
            [row["updates"] for row in report["students"]],
            [row[name] for row in report["students"]],
            label=f"{name} student, one forward",
        )
    for row in report["teacher"][:3]:  # more forwards lie on one line
        label = f"teacher, {row['forwards']} forward{'s' if row['forwards'] > 1 else ''}"
        axis.axhline(row["kl"], color="0.7", lw=0.8)
        axis.annotate(label, (report["updates"], row["kl"] + 0.02), fontsize=7, ha="right")
    axis.axhline(math.log(2), color="k", lw=0.8, ls="--", label="log 2")
    axis.set(xlabel="updates", ylabel="KL from the law, nats", ylim=(0, 1.6))
    axis.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--updates", type=int, default=400)
    updates = parser.parse_args().updates
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    chain, generator = law(), torch.Generator().manual_seed(SEED)

    def teacher(noisy: Tensor, gamma: Tensor, belief: Tensor | None = None, /) -> Tensor:
        return chain.predict(PROCESS.evidence(noisy, gamma.expand(noisy.shape[:-1])).softmax(-1), "posterior")

    noise = torch.randn(DRAWS, 2, 2, dtype=torch.float64, generator=generator)
    blank, free = torch.zeros(DRAWS, 2, dtype=torch.int64), torch.ones(DRAWS, 2, dtype=torch.bool)
    high = PROCESS.schedule.ends()[1].expand(DRAWS, 2)
    pure = GaussianNoised(noise, high, torch.ones(DRAWS, dtype=torch.float64), free)
    counts = (1, 2, 4, 8, 16)
    ends = {count: flow_end(teacher, blank, pure, PROCESS, num_steps=count).softmax(-1) for count in counts}
    student, masked = Student(), nn.Parameter(torch.randn(2, 4, dtype=torch.float64))
    groups = [{"params": student.parameters(), "lr": 1e-2}, {"params": [masked], "lr": 0.1}]
    optimizer = torch.optim.Adam(groups)
    rows = []
    for update in range(updates + 1):
        if update % (updates // 20) == 0:
            with torch.no_grad():
                found = divergence(student(noise, high).softmax(-1))
                rows.append(
                    {"updates": update, "masked": divergence(masked.softmax(-1)[None]), "continuous": found}
                )
        optimizer.param_groups[0]["lr"] = 1e-2 * (1 - update / (updates + 1))
        x0 = chain.sample(ROWS, 2, generator)
        loss = flow_end_loss(student, teacher, x0, PROCESS, generator, num_steps=16)
        discrete = -masked.log_softmax(-1).expand(ROWS, 2, 4).gather(-1, x0[..., None]).sum()
        optimizer.zero_grad()
        ((loss.total + discrete) / loss.num_tokens).backward()
        optimizer.step()
    report = {
        "command": " ".join(["python", "benchmarks/few_steps.py", *sys.argv[1:]]),
        "machine": provenance(torch.device("cpu"), torch.float32),
        "seed": SEED,
        "updates": updates,
        "draws": DRAWS,
        "log_2": round(math.log(2), 4),
        "teacher": [{"forwards": count, "kl": divergence(laws)} for count, laws in ends.items()],
        "students": rows,
    }
    print(report["teacher"], rows[-1], file=sys.stderr)
    (HERE / "few_steps.json").write_text(json.dumps(report, indent=2) + "\n")
    draw_picture(report, HERE / "few_steps.png")


if __name__ == "__main__":
    main()

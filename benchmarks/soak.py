"""An engine for an hour: requests of every mode come at random, some are aborted; nothing lost, nothing that grows.

    python benchmarks/soak.py [--minutes 60] [--share 0.5] [--seed 0] [--out benchmarks/soak.json]

A random two-layer model in float32, few pages and many requests, so that preemption and eviction go on all the time.
Pages must add up after every forward, and every answer must be what the reference loop writes for that request alone.
`--share`: how much of a core it may use; it sleeps in between. Writes the report and, beside it, a picture of the
resident memory. Exits with status 1 where a request was lost, answered twice or wrongly, or memory grew.
"""

import argparse
import json
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import tokenizers
import torch
from rich.progress import Progress
from tokenizers import decoders, models, pre_tokenizers

from unmask.config import AdapterConfig, TransformerConfig
from unmask.decoding.generate import generate
from unmask.decoding.mode import ENGINE_MODES
from unmask.decoding.options import Options
from unmask.decoding.rules import RULES
from unmask.engine.engine import Engine, Failed, Finished
from unmask.evaluation.figure import new_figure
from unmask.evaluation.provenance import provenance
from unmask.model.adapter import Adapter
from unmask.model.denoiser import Denoiser
from unmask.model.transformer import Transformer
from unmask.runtime import tune_allocator
from unmask.tokenizer import Tokenizer

LETTERS = "abcdefghijklmnopqrstuvwxyz"
NUM_ALLOWED = 4
"""Letters that the model may write: so few that drafts are accepted by chance."""

NUM_QUESTIONS = 96
NUM_PAGES, PAGE_SIZE, TOKEN_BUDGET, MAX_REQUESTS = 40, 4, 48, 8
MOST_PRESENT = 24
ARRIVAL_CHANCE, ABORTION_CHANCE = 0.4, 0.03  # before each forward
MOST_GROWTH_MIB = 16.0
SAMPLE_S = 1.0


@dataclass(frozen=True)
class Question:
    """A request and the only right answer to it."""

    prompt: tuple[int, ...]
    options: Options
    answer: tuple[int, ...]


@dataclass
class Tally:
    """What became of requests, and the resident memory in MiB by the seconds passed."""

    outcomes: Counter[str] = field(default_factory=Counter)
    memory: list[tuple[float, float]] = field(default_factory=list)
    num_forwards: int = 0
    num_tokens: int = 0
    num_preemptions: int = 0

    @property
    def growth_mib(self) -> float:
        """How much more the last quarter of the time takes than the second."""
        quarter = len(self.memory) // 4
        if not quarter:
            return 0.0
        early, late = self.memory[quarter : 2 * quarter], self.memory[-quarter:]
        return sum(mib for _, mib in late) / quarter - sum(mib for _, mib in early) / quarter

    @property
    def faults(self) -> list[str]:
        """Say what must not have happened and did."""
        outcomes = self.outcomes
        lost = outcomes["added"] - outcomes["right"] - outcomes["wrong"] - outcomes["aborted"]
        counts = {"lost": lost, "wrong": outcomes["wrong"], "answered twice": outcomes["answered twice"]}
        found = [f"{count} {what}" for what, count in counts.items() if count]
        if self.growth_mib > MOST_GROWTH_MIB:
            found.append(f"memory grew by {self.growth_mib:.1f} MiB")
        return found


def random_model(generator: torch.Generator) -> tuple[Denoiser, Tokenizer]:
    """Return a small random denoiser with an adapter, and a tokenizer of letters."""
    symbols = ["<eos>", "<bos>", *LETTERS]
    backend = tokenizers.Tokenizer(models.BPE({text: number for number, text in enumerate(symbols)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<eos>", "<bos>"])
    config = TransformerConfig(
        vocab_size=len(symbols),
        hidden_size=16,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_size=8,
        intermediate_size=24,
        max_positions=128,
    )
    transformer = Transformer(config).requires_grad_(False)
    for weight in transformer.parameters():
        if weight.ndim == 2:
            weight.normal_(0.0, weight.shape[1] ** -0.5, generator=generator)
    transformer.head_weight.mul_(6.0)
    adapter = Adapter(config, AdapterConfig(rank=4, alpha=4.0)).requires_grad_(False)
    for weight in adapter.parameters():
        weight.normal_(0.0, 0.3, generator=generator)
    banned = tuple(range(2 + NUM_ALLOWED, len(symbols)))
    denoiser = Denoiser(transformer, adapter, mask_token_id=len(symbols), banned=banned)
    return denoiser, Tokenizer(backend, {"eos_token": "<eos>", "bos_token": "<bos>"})


def questions(denoiser: Denoiser, tokenizer: Tokenizer, generator: random.Random) -> list[Question]:
    """Return requests of every mode, whose prompts begin alike, with the answers of the reference loop."""
    stem = [generator.randint(2, 1 + len(LETTERS)) for _ in range(40)]
    found = []
    for _ in range(NUM_QUESTIONS):
        tail = [generator.randint(2, 1 + len(LETTERS)) for _ in range(generator.randint(1, 12))]
        prompt = (*stem[: generator.randint(0, len(stem))], *tail)
        options = random_options(generator)
        alone = replace(options, mode="speculative") if options.mode == "auto" else options
        answer = generate(denoiser, tokenizer, prompt, alone).token_ids
        found.append(Question(prompt, options, answer))
    return found


def random_options(generator: random.Random) -> Options:
    """Return options of any mode; in mode auto they are greedy, so that the text does not depend on the plan."""
    mode = generator.choice(ENGINE_MODES)
    options = Options(
        max_tokens=generator.randint(1, 32),
        temperature=0.0 if mode == "auto" else generator.choice([0.0, 0.8]),
        seed=generator.randrange(100),
        stop_token_ids=generator.choice([(), (0,)]),
    )
    if mode == "ar":
        return options
    options = replace(options, mode=mode, block_length=generator.randint(2, 8))
    if mode == "diffusion":
        rule = generator.choice(["threshold:0.6", "top-k:2", "entropy-bound:1", "random:2"])
        return replace(options, rule=RULES.parse(rule))
    if mode == "auto":
        return options
    tree_size, num_predrafts = generator.choice([None, 3, 7]), generator.choice([None, 1, 2])
    return replace(options, tree_size=tree_size, num_predrafts=num_predrafts)


def soak(
    engine: Engine, asked: Sequence[Question], generator: random.Random, *, seconds: float, share: float
) -> Tally:
    """Let requests come and go for so long, then let those that are there finish."""
    tally = Tally()
    present: dict[int, Question] = {}
    waiting_again: set[int] = set()
    began = time.perf_counter()
    with Progress() as bar:
        task = bar.add_task("soaking", total=seconds)
        while (passed := time.perf_counter() - began) < seconds or present:
            if passed < seconds and len(present) < MOST_PRESENT and generator.random() < ARRIVAL_CHANCE:
                question = generator.choice(asked)
                number = engine.add(question.prompt, question.options)
                present[number] = question
                tally.outcomes["added"] += 1
            if present and generator.random() < ABORTION_CHANCE:
                number = generator.choice(list(present))
                engine.abort(number)
                del present[number]
                tally.outcomes["aborted"] += 1
            step(engine, present, tally)
            again = {request.number for request in engine.scheduler.waiting if request.num_forwards}
            tally.num_preemptions += len(again - waiting_again)
            waiting_again = again
            if len(tally.memory) * SAMPLE_S <= passed:
                tally.memory.append((passed, resident_mib()))
                bar.update(task, completed=passed)
            busy = time.perf_counter() - began - passed
            time.sleep(busy * (1 / share - 1))
    return tally


def step(engine: Engine, present: dict[int, Question], tally: Tally) -> None:
    """Run one forward, take the answers that are finished, and prove that pages add up."""
    for event in engine.step():
        if not isinstance(event, Finished | Failed):
            continue
        question = present.pop(event.request_id, None)
        if question is None:
            tally.outcomes["answered twice"] += 1
        elif isinstance(event, Finished) and event.generation.token_ids == question.answer:
            tally.outcomes["right"] += 1
            tally.num_tokens += event.generation.num_tokens
        else:
            tally.outcomes["wrong"] += 1
    engine.check()
    tally.num_forwards += 1


def resident_mib() -> float:
    """Return the memory that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def draw(tally: Tally, path: Path) -> None:
    """Draw resident memory against time."""
    figure = new_figure(1)
    panel = figure.subplots()
    panel.plot([passed / 60 for passed, _ in tally.memory], [mib for _, mib in tally.memory])
    panel.set(
        xlabel="minutes", ylabel="resident memory, MiB", ylim=(0, 1.2 * max(mib for _, mib in tally.memory))
    )
    figure.savefig(path, dpi=150)


def main() -> None:
    """Soak, and write the report and the picture."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--share", type=float, default=0.5, help="of a core, above 0 and at most 1")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    settings = parser.parse_args()
    if not (0 < settings.share <= 1 and settings.minutes > 0):
        parser.error("--share must be above 0 and at most 1, --minutes above 0")
    tune_allocator()
    torch.set_num_threads(1)
    denoiser, tokenizer = random_model(torch.Generator().manual_seed(settings.seed))
    generator = random.Random(settings.seed)
    asked = questions(denoiser, tokenizer, generator)
    engine = Engine(
        denoiser,
        tokenizer,
        num_pages=NUM_PAGES,
        page_size=PAGE_SIZE,
        token_budget=TOKEN_BUDGET,
        max_requests=MAX_REQUESTS,
    )
    tally = soak(engine, asked, generator, seconds=60 * settings.minutes, share=settings.share)
    report = {
        "settings": {"minutes": settings.minutes, "share": settings.share, "seed": settings.seed},
        "provenance": provenance(denoiser.transformer.device, denoiser.transformer.dtype),
        "outcomes": dict(tally.outcomes),
        "faults": tally.faults,
        "num_forwards": tally.num_forwards,
        "num_tokens": tally.num_tokens,
        "num_preemptions": tally.num_preemptions,
        "growth_mib": round(tally.growth_mib, 2),
        "memory_mib": [[round(passed, 1), round(mib, 1)] for passed, mib in tally.memory],
    }
    settings.out.write_text(json.dumps(report) + "\n", encoding="utf-8")
    draw(tally, settings.out.with_suffix(".png"))
    print(
        f"{dict(tally.outcomes)}, {tally.num_forwards} forwards, {tally.num_preemptions} preemptions, "
        f"memory {tally.growth_mib:+.1f} MiB; {'; '.join(tally.faults) or 'no fault'}"
    )
    sys.exit(1 if tally.faults else 0)


if __name__ == "__main__":
    main()

"""A training run small enough for a test: a corpus, a transformer and its next-token loss.

As a program it runs one: python tiny_training.py FOLDER SHARDS [table.key=value ...]. It kills itself after the step
that TINY_TRAINING_DIES_AT names.
"""

import os
import signal
import sys
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from unmask.layout import Layout, Segment
from unmask.model.transformer import Transformer
from unmask.training.batches import Batch
from unmask.training.config import NewModelTable, TrainingConfig
from unmask.training.initialisation import random_transformer
from unmask.training.journal import TrainingEvent
from unmask.training.loss import LossSum
from unmask.training.parallel import Workers, joined_workers
from unmask.training.preparation import PreparationConfig, prepare
from unmask.training.recipe import Recipe
from unmask.training.run import TrainingRun
from unmask.training.shards import Shards

WORDS = "the river runs down to a sea that no map shows and nobody who went there came back".split()

CONFIG = """
[model]
hidden_size = 16
num_layers = 2
num_heads = 2
num_kv_heads = 1

[data]
folder = "shards"
length = 24

[objective]
name = "ar"

[optimizer]
learning_rate = 0.01
warmup_steps = 2

[run]
steps = 8
forward_tokens = 80
forwards_per_step = 2
save_every = 3
measure_every = 4
held_out_tokens = 200
"""


def write_texts(path: Path, num_documents: int = 60) -> None:
    """Write documents of very different lengths to a text file."""
    generator = torch.Generator().manual_seed(0)

    def document() -> str:
        length = int(torch.randint(1, 30, (), generator=generator))
        return " ".join(
            WORDS[i] for i in torch.randint(0, len(WORDS), (length,), generator=generator).tolist()
        )

    path.write_text("\n<|doc|>\n".join(document() for _ in range(num_documents)))


def make_shards(folder: Path, **changes: object) -> Shards:
    """Make byte shards of a small corpus in ``folder / "shards"``."""
    write_texts(folder / "corpus.txt")
    settings: dict[str, object] = {
        "sources": (str(folder / "corpus.txt"),),
        "tokenizer": "bytes",
        "held_out_share": 0.2,
    }
    config = PreparationConfig(**(settings | changes))  # type: ignore[arg-type]
    return prepare(config, folder / "shards", lambda event: None, offline=True, say=lambda message: None)


def tiny_config(*settings: str) -> TrainingConfig:
    """Return the small configuration with some ``table.key=value`` in TOML changed."""
    content = tomllib.loads(CONFIG)
    for setting in settings:
        place, _, value = setting.partition("=")
        table, key = place.split(".")
        content[table][key] = tomllib.loads(f"value = {value}")["value"]
    content["optimizer"].setdefault("name", "adamw")
    content["model"].setdefault("name", "new")
    return TrainingConfig.model_validate(content)


class Network(nn.Module):
    """A transformer, and a port that only some batches use."""

    def __init__(self, transformer: Transformer) -> None:
        super().__init__()
        self.transformer = transformer
        self.port = nn.Parameter(torch.zeros(transformer.config.hidden_size))


@dataclass(frozen=True)
class NextToken:
    """The next-token loss, in two parts, with noise.

    As under self-conditioning, half of the batches go through the model once more and use a port that others do not.
    """

    network: Network

    def __call__(self, batch: Batch, generator: torch.Generator) -> Mapping[str, LossSum]:
        transformer = self.network.transformer
        layout = Layout([Segment(0, end - begin) for begin, end in pairwise(batch.bounds)])
        embedded = transformer.embed_tokens(batch.tokens)
        embedded = embedded + 0.01 * torch.randn(embedded.shape, generator=generator)
        if torch.rand((), generator=generator) < 0.5:
            with torch.no_grad():
                belief = transformer(embedded, layout)
            embedded = embedded + belief * self.network.port
        target = (~batch.given).nonzero()[:, 0]
        logits = transformer.logits(transformer(embedded, layout)[target - 1])
        loss = F.cross_entropy(logits, batch.tokens[target], reduction="sum")
        return {"ar": LossSum(loss, batch.num_scored), "half": LossSum(loss / 2, batch.num_scored, 0.1)}


def tiny_recipe(config: TrainingConfig, shards: Shards) -> Recipe:
    """Return a random transformer, its next-token loss, and ways to sample and export it."""
    generator = torch.Generator().manual_seed(config.run.seed)
    assert isinstance(config.model, NewModelTable)
    shape = config.model.transformer(shards.manifest.vocab_size, max_positions=config.data.length + 1)
    transformer = random_transformer(shape, generator)
    network = Network(transformer)

    @torch.inference_mode()
    def sample(step: int) -> str:
        tokens = [shards.manifest.end_token_id]
        for _ in range(8):
            hidden = transformer(torch.tensor(tokens), Layout([Segment(0, len(tokens))]))
            tokens.append(int(transformer.logits(hidden[-1:]).argmax()))
        return shards.tokenizer().decode(tokens)

    def export(weights: Mapping[str, Tensor], folder: Path) -> None:
        folder.mkdir()
        save_file(dict(weights), folder / "model.safetensors")

    return Recipe(network, NextToken(network), sample, export)


def train(
    folder: Path,
    shards: Shards,
    *settings: str,
    observe: Callable[[TrainingEvent], None] = lambda event: None,
    workers: Workers | None = None,
) -> TrainingRun:
    """Run the small configuration, changed by settings, to its end."""
    config = tiny_config(*settings)
    alone = Workers(torch.device("cpu"))
    run = TrainingRun(config, folder, shards, tiny_recipe(config, shards), workers or alone, observe)
    run.run()
    return run


def main(arguments: Sequence[str]) -> None:
    folder, shards, *settings = arguments
    last = int(os.environ.get("TINY_TRAINING_DIES_AT", "0"))

    def observe(event: TrainingEvent) -> None:
        if event.record is not None and event.record.split == "train" and event.record.step == last:
            os.kill(os.getpid(), signal.SIGKILL)

    with joined_workers("cpu") as workers:
        train(Path(folder), Shards.open(Path(shards)), *settings, observe=observe, workers=workers)


if __name__ == "__main__":
    main(sys.argv[1:])

"""Conversion: an autoregressive checkpoint gets a diffusion mode, by one of three recipes."""

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from unmask.errors import TrainingError, UsageError
from unmask.model.checkpoint import Checkpoint, base_source
from unmask.model.run_checkpoints import MODEL_FOLDER
from unmask.training.conversion_config import ConversionConfig, JointRecipe
from unmask.training.documents import Document, DocumentFile, sample_windows
from unmask.training.frozen_objective import BatchLoss
from unmask.training.pupil import AdapterPupil, JointPupil, Pupil
from unmask.training.run_folder import METRICS_FILE, RunFolder
from unmask.training.step_loop import train
from unmask.training.synthesis import Script, SynthesisConfig, write_batch

CONFIG_FILE = "conversion.json"
STATE_FILE = "state.pt"
DOCUMENTS_FILE = "documents.jsonl"


@dataclass(frozen=True)
class StepRecord:
    """One line of metrics.jsonl: means over one training batch, or over the held-out documents.

    `overlap`: chance that a sampled draft is accepted. `tokens_per_cycle`: tokens that a greedy draft-verify cycle
    with the greatest block length emits on this text. `seconds`: training time so far.
    """

    split: Literal["train", "held_out"]
    step: int
    loss: float
    overlap: float | None
    tokens_per_cycle: float | None
    num_tokens: int
    learning_rate: float
    seconds: float


@dataclass(frozen=True)
class ConversionEvent:
    """Progress for whoever watches: `done` of `total` in a stage; `record` when a batch was trained or measured."""

    stage: Literal["writing", "training"]
    done: float
    total: float
    record: StepRecord | None = None


class Conversion:
    """One run in one folder: prepare the documents, train, and leave a model that `unmask.load` reads.

    All its state is in the folder; constructing it on a folder that holds an unfinished run of the same config
    continues that run.
    """

    def __init__(self, config: ConversionConfig, folder: Path, checkpoint: Checkpoint) -> None:
        if not checkpoint.card.predicts_next:
            raise UsageError(
                f"{checkpoint.card.name} predicts no next tokens, which a conversion learns from",
                "convert an autoregressive model",
            )
        self.config, self.checkpoint = config, checkpoint
        # Before the folder is taken: what is refused leaves no trace of a run.
        self.texts = sample_windows(
            config.texts,
            checkpoint.tokenizer,
            num_tokens=config.text_tokens,
            length=config.length,
            seed=config.seed,
            weights=config.text_weights,
        )
        # Documents are written in whole batches, and none is longer than `length`.
        batches = math.ceil(config.synthetic_tokens / (config.synthesis_rows * config.length))
        least = batches * config.synthesis_rows + len(self.texts)
        if least <= config.held_out_documents:
            raise UsageError(
                f"{least} documents are too few to keep {config.held_out_documents} out of training",
                "raise synthetic_tokens or text_tokens, or lower held_out_documents",
            )
        self.pupil = _pupil(config, checkpoint)
        self.folder = RunFolder(folder, "conversion")
        resolved = json.dumps(config.model_dump(mode="json"), indent=2) + "\n"
        self.folder.claim(CONFIG_FILE, resolved, lambda text: ConversionConfig.filled(json.loads(text)))
        self.pupil.denoiser.transformer.recomputes = config.activation_checkpointing
        self.optimizer = torch.optim.AdamW(
            self.pupil.module.parameters(),
            betas=(0.9, 0.95),
            weight_decay=0.0,
            lr=config.recipe.learning_rate,
        )
        self.step, self.seconds, self.num_tokens = 0, 0.0, 0
        self._restore()

    def run(self, observe: Callable[[ConversionEvent], None]) -> None:
        """Carry the run to its end; on Ctrl-C finish the step, save, and raise KeyboardInterrupt."""
        held_out, training = self.documents(observe)
        if self.step == 0:
            self.measure(held_out, observe)
        train(_Steps(self, training, held_out, observe))

    def documents(self, observe: Callable[[ConversionEvent], None]) -> tuple[list[Document], list[Document]]:
        """Return those kept out of training and the others, written now where they are missing."""
        documents, count = self._documents(observe), self.config.held_out_documents
        if len(documents) <= count:
            raise TrainingError(
                f"{len(documents)} documents are too few to keep {count} out of training",
                "raise synthetic_tokens or text_tokens, in another folder",
            )
        return documents[:count], documents[count:]

    def save(self) -> None:
        """Write a checkpoint, the model and the state to resume from, which appears whole or not at all."""
        state = {
            "module": self.pupil.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "num_tokens": self.num_tokens,
        }
        with self.folder.checkpoint(self.step) as partial:
            partial.mkdir()
            torch.save(state, partial / STATE_FILE)
            self.pupil.write(
                partial / MODEL_FOLDER,
                name=self.folder.path.name,
                base=base_source(self.config.model),
                block_lengths=self.config.block_lengths,
            )

    def train_step(self, documents: Sequence[Document], observe: Callable[[ConversionEvent], None]) -> None:
        """Train on one batch of these documents."""
        began = time.perf_counter()
        generator = np.random.default_rng((self.config.seed, self.step))
        chosen = [documents[i] for i in generator.choice(len(documents), self.config.batch_documents)]
        rate = self.config.learning_rates.at(self.step, self.progress())
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        batch = self.pupil.loss(chosen, generator, self.progress())
        torch.autograd.backward(batch.loss)
        if not torch.isfinite(batch.loss):
            raise TrainingError(
                f"the loss is {batch.loss.item()} at step {self.step}",
                "lower the learning rate, in another folder",
            )
        torch.nn.utils.clip_grad_norm_(self.pupil.module.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step, self.num_tokens = self.step + 1, self.num_tokens + batch.num_tokens
        self.seconds += time.perf_counter() - began
        self._report("train", [batch], rate, observe)

    @torch.no_grad()
    def measure(self, documents: Sequence[Document], observe: Callable[[ConversionEvent], None]) -> None:
        """Report the loss on documents kept out of training."""
        size = self.config.batch_documents
        batches = [
            self.pupil.loss(documents[i : i + size], np.random.default_rng(i), 1.0)
            for i in range(0, len(documents), size)
        ]
        self._report("held_out", batches, 0.0, observe)

    def _report(
        self,
        split: Literal["train", "held_out"],
        batches: Sequence[BatchLoss],
        rate: float,
        observe: Callable[[ConversionEvent], None],
    ) -> None:
        record = StepRecord(
            split,
            self.step,
            loss=float(np.mean([batch.loss.item() for batch in batches])),
            overlap=_mean([batch.overlap for batch in batches]),
            tokens_per_cycle=_mean([batch.cycle_tokens for batch in batches]),
            num_tokens=self.num_tokens,
            learning_rate=rate,
            seconds=round(self.seconds, 3),
        )
        self.folder.append(METRICS_FILE, asdict(record))
        total = self.config.steps if self.config.steps is not None else 60 * (self.config.minutes or 0)
        observe(ConversionEvent("training", self.progress() * total, total, record))

    def progress(self) -> float:
        """Return how much of the run is done, from 0 to 1."""
        if self.config.steps is not None:
            return self.step / self.config.steps
        assert self.config.minutes is not None
        return min(1.0, self.seconds / (60 * self.config.minutes))

    def _documents(self, observe: Callable[[ConversionEvent], None]) -> list[Document]:
        config = self.config
        synthesis = SynthesisConfig(length=config.length, batch_size=config.synthesis_rows)
        script = Script.of(self.checkpoint.tokenizer)

        def write(batch: int) -> list[list[int]]:
            return write_batch(
                self.checkpoint.transformer,
                script.head,
                synthesis,
                stop_token=script.stop_token,
                bridge=script.bridge,
                seed=config.seed,
                batch=batch,
            )

        with self.folder.saving():
            file = DocumentFile(self.folder.path / DOCUMENTS_FILE, config.synthesis_rows)
        written = file.fill(
            write,
            config.synthetic_tokens,
            lambda done, total: observe(ConversionEvent("writing", done, total)),
        )
        least = min(config.block_lengths)
        usable = [
            document
            for document in (*map(Document.of_text, written), *self.texts)
            if any(end - begin >= least for begin, end in document.learnt)
        ]
        order = np.random.default_rng(config.seed).permutation(len(usable))
        return [usable[index] for index in order]

    def _restore(self) -> None:
        found = self.folder.checkpoints()
        if found:
            with self.folder.reading(found[-1]):
                state: dict[str, Any] = torch.load(found[-1] / STATE_FILE, weights_only=True)
                self.pupil.module.load_state_dict(state["module"])
                self.optimizer.load_state_dict(state["optimizer"])
            self.step, self.seconds, self.num_tokens = state["step"], state["seconds"], state["num_tokens"]
        self.folder.rewind(METRICS_FILE, self.step if found else None)


def _pupil(config: ConversionConfig, checkpoint: Checkpoint) -> Pupil:
    recipe = config.recipe
    if isinstance(recipe, JointRecipe):
        return JointPupil(recipe, checkpoint, config.block_lengths, autocast=config.dtype == "bfloat16")
    generator = torch.Generator().manual_seed(config.seed)
    return AdapterPupil(recipe, checkpoint, config.block_lengths, generator)


@dataclass(frozen=True)
class _Steps:
    """The steps of a conversion on documents that are there."""

    conversion: Conversion
    training: Sequence[Document]
    held_out: Sequence[Document]
    observe: Callable[[ConversionEvent], None]

    def progress(self) -> float:
        return self.conversion.progress()

    def train_step(self) -> None:
        self.conversion.train_step(self.training, self.observe)

    def rest(self) -> bool:
        due = self.conversion.step % self.conversion.config.save_every == 0 or self.progress() >= 1
        if due:
            self.conversion.measure(self.held_out, self.observe)
            self.save()
        return due

    def save(self) -> None:
        self.conversion.save()

    def agree(self, *, wanted: bool) -> bool:
        return wanted


def _mean(parts: Sequence[Tensor]) -> float | None:
    """Return the mean of all values, or None (null in JSON) where a batch happened to have none."""
    values = torch.cat(list(parts))
    return float(values.mean()) if len(values) else None

"""A training run: the loop around a model and its objective, and all its state in one folder."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from tomllib import loads

import numpy as np
import torch
from torch import nn
from torch.distributed.tensor import DTensor

from unmask.errors import TrainingError, UsageError
from unmask.model.run_checkpoints import MODEL_FOLDER, checkpoint_name
from unmask.training.average import WeightAverage
from unmask.training.batches import Batch, Packs
from unmask.training.config import TrainingConfig
from unmask.training.journal import Journal, Progress, Split, TrainingEvent
from unmask.training.loss import LossMean, LossSum, TrainingObjective, optimised
from unmask.training.optimizers import build_optimizers, set_learning_rate
from unmask.training.parallel import Workers, whole_weights
from unmask.training.recipe import Recipe
from unmask.training.run_folder import PARTIAL, RunFolder
from unmask.training.sharded_state import State, load_state, save_state
from unmask.training.shards import Shards
from unmask.training.shards import Split as TokenSplit
from unmask.training.step_loop import train

CONFIG_FILE = "config.toml"
STATE_FOLDER = "state"

_HELD_OUT_SEED = 0
"""Every run measures the same pieces, taken from all of the held-out documents."""


class TrainingRun:
    """One run in one folder; constructing it where an unfinished run of the same config lies continues that run.

    Weights, optimiser and counters are in the checkpoints; order and noise depend on seed and step alone. So a run
    that was cut off anywhere ends as if it had not been, to the bit on a CPU with the same number of threads.
    """

    def __init__(
        self,
        config: TrainingConfig,
        folder: Path,
        shards: Shards,
        recipe: Recipe,
        workers: Workers,
        observe: Callable[[TrainingEvent], None],
    ) -> None:
        if config.run.forwards_per_step % workers.count:
            raise UsageError(
                f"run.forwards_per_step={config.run.forwards_per_step} cannot be shared by {workers.count} processes",
                "make it a multiple of their number",
            )
        if config.run.attention == "flex" and workers.device.type != "cuda":
            raise UsageError(
                f"run.attention = 'flex' needs CUDA, and the device is {workers.device.type}",
                "leave it out, or name --device cuda",
            )
        self.config, self.shards, self.recipe, self.workers = config, shards, recipe, workers
        self.folder = RunFolder(folder, "training run")
        if workers.is_first:
            self.folder.claim(CONFIG_FILE, config.to_toml(), lambda text: TrainingConfig.filled(loads(text)))
        workers.wait()
        self.module = workers.shard(_Scored(recipe.model.to(workers.device), recipe.objective))
        self.optimizers = build_optimizers(recipe.model, config.optimizer)
        decay = config.optimizer.average_decay
        self.average = WeightAverage(recipe.model, decay) if decay else None
        self.step, self.seconds, self.num_tokens = 0, 0.0, 0
        self._training = self._packs(shards.train, config.run.seed)
        self._held_out = None if shards.held_out is None else self._packs(shards.held_out, _HELD_OUT_SEED)
        self.journal = Journal(self.folder, observe, writes=workers.is_first)
        self._restore()

    def run(self) -> None:
        """Carry the run to its end; on Ctrl-C finish the step, save, and raise KeyboardInterrupt."""
        if self.step == 0:
            self._measure()
        try:
            train(self)
        finally:
            self.journal.close()

    def progress(self) -> float:
        """Return how much of the run is done, from 0 to 1."""
        budget = self.config.run
        if budget.steps is not None:
            return self.step / budget.steps
        assert budget.minutes is not None
        return min(1.0, self.seconds / (60 * budget.minutes))

    def train_step(self) -> None:
        """Take one optimiser step."""
        began = time.perf_counter()
        table = self.config.optimizer
        rate = table.learning_rates.at(self.step, self.progress())
        set_learning_rate(self.optimizers, rate)
        per_step = self.config.run.forwards_per_step
        numbers = range(self.step * per_step, (self.step + 1) * per_step)
        num_scored = sum(self._training.num_scored(number) for number in numbers)
        parts = []
        with self.workers.gathered(self.module):
            for number in numbers[self.workers.rank :: self.workers.count]:
                losses = self._forward("train", self._training, number)
                # Processes average their gradients; what is wanted is the sum.
                torch.autograd.backward(optimised(losses) * (self.workers.count / num_scored))
                parts.append(
                    {name: loss._replace(total=loss.total.detach()) for name, loss in losses.items()}
                )
        mean = LossMean.of(parts, self.workers)
        norm = self._clip(num_scored / mean.num_tokens)
        if not math.isfinite(mean.optimised) or not math.isfinite(norm):
            raise TrainingError(
                f"at step {self.step} the loss is {mean.optimised} and the gradient's norm {norm}",
                "lower optimizer.learning_rate, in another folder",
            )
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update(self.step)
        self.step, self.num_tokens = self.step + 1, self.num_tokens + mean.num_tokens
        self.seconds = self.workers.from_first(self.seconds + time.perf_counter() - began)
        self.journal.note_trained(mean, self._so_far(), rate=rate, norm=norm)

    def rest(self) -> bool:
        """Measure, sample and save what is due after a step; say whether it was saved."""
        budget, is_end = self.config.run, self.progress() >= 1

        def is_due(every: int) -> bool:
            return every > 0 and (is_end or self.step % every == 0)

        if is_due(budget.measure_every):
            self._measure()
        if is_due(budget.sample_every):
            self._sample()
        if is_due(budget.save_every):
            self.save()
        return is_due(budget.save_every)

    def agree(self, *, wanted: bool) -> bool:
        """Say whether any process wants to stop."""
        return self.workers.any(flag=wanted)

    def save(self) -> None:
        """Write a checkpoint, which appears whole or not at all, and drop those that are no longer kept."""
        average = {} if self.average is None else self.average.weights
        weights = whole_weights(average or dict(self.recipe.model.named_parameters()))
        first = self.workers.is_first
        writing: AbstractContextManager[Path] = (
            self.folder.checkpoint(self.step, keep=self.config.run.keep_checkpoints)
            if first
            else nullcontext(self.path / (checkpoint_name(self.step) + PARTIAL))
        )
        with self.folder.saving(), writing as partial:
            self.workers.wait()
            save_state(partial / STATE_FOLDER, self.module, self.optimizers, self._rest(), self.workers)
            if first:
                (partial / CONFIG_FILE).write_text(self.config.to_toml(), encoding="utf-8")
                self.recipe.export(weights, partial / MODEL_FOLDER)
        self.workers.wait()

    @property
    def path(self) -> Path:
        return self.folder.path

    def _forward(self, split: Split, packs: Packs, number: int) -> dict[str, LossSum]:
        """Score one batch, with noise that depends on the seed, the split and the batch's number only."""
        device = self.workers.device
        words = np.random.SeedSequence(
            (self.config.run.seed, int(split == "held_out"), number)
        ).generate_state(1, np.uint64)
        generator = torch.Generator(device).manual_seed(int(words[0]))
        with torch.autocast(device.type, torch.bfloat16, enabled=self.config.run.dtype == "bfloat16"):
            losses: dict[str, LossSum] = self.module(packs[number].to(device), generator)
        return losses

    def _clip(self, scale: float) -> float:
        """Scale all gradients, limit their norm, and return what it was before."""
        gradients = [p.grad for p in self.recipe.model.parameters() if p.grad is not None]
        if scale != 1:
            torch._foreach_mul_(gradients, scale)
        norm = torch.nn.utils.clip_grad_norm_(self.recipe.model.parameters(), self.config.optimizer.clip_norm)
        return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)

    def _measure(self) -> None:
        """Report the losses on the held-out documents, always with the same noise."""
        packs = self._held_out
        if packs is None:
            return
        numbers = range(self._num_measured(packs))
        parts = []
        with self._inference():
            # Every process does the same number of forwards; those beyond the last count for nothing.
            for first in range(0, len(numbers), self.workers.count):
                number = first + self.workers.rank
                losses = self._forward("held_out", packs, min(number, numbers[-1]))
                if number not in numbers:
                    losses = {name: LossSum(loss.total * 0, 0, loss.weight) for name, loss in losses.items()}
                parts.append(losses)
        self.journal.note_measured(LossMean.of(parts, self.workers), self._so_far())

    def _num_measured(self, packs: Packs) -> int:
        """Return how many held-out batches are measured: one, and others while they keep to the budget."""
        left = self.config.run.held_out_tokens
        for number in range(packs.num_in_epoch(0)):
            left -= packs.num_scored(number)
            if left < 0:
                return max(1, number)
        return packs.num_in_epoch(0)

    def _sample(self) -> None:
        with self._inference():
            text = self.recipe.sample(self.step)
        self.journal.note_sample(text, self._so_far())

    @contextmanager
    def _inference(self) -> Iterator[None]:
        """Run the model on its averaged weights where there are any, without gradients."""
        averaged = nullcontext() if self.average is None else self.average.applied()
        with torch.no_grad(), averaged, self.workers.gathered(self.module):
            yield

    def _so_far(self) -> Progress:
        budget = self.config.run
        total = budget.steps if budget.steps is not None else 60 * (budget.minutes or 0)
        return Progress(self.step, self.progress() * total, total, self.seconds, self.num_tokens)

    def _packs(self, split: TokenSplit, seed: int) -> Packs:
        return Packs(
            split,
            length=self.config.data.length,
            num_tokens=self.config.run.forward_tokens,
            start_token_id=self.shards.manifest.end_token_id,
            seed=seed,
            weights=self.shards.manifest.weights,
        )

    def _rest(self) -> State:
        """Return the state that is neither the model's nor an optimiser's."""
        counters = {"step": self.step, "seconds": self.seconds, "num_tokens": self.num_tokens}
        average = {} if self.average is None else self.average.weights
        return {"average": average, "counters": counters, "dataset": self.shards.identity}

    def _restore(self) -> None:
        found = self.folder.checkpoints()
        if found:
            with self.folder.reading(found[-1]):
                rest = load_state(
                    found[-1] / STATE_FOLDER, self.module, self.optimizers, self._rest(), self.workers
                )
            if rest["dataset"] != self.shards.identity:
                raise UsageError(
                    f"{self.path} was trained on other shards than {self.shards.folder}",
                    "give it those, or another folder",
                )
            counters = rest["counters"]
            self.step, self.seconds = counters["step"], counters["seconds"]
            self.num_tokens = counters["num_tokens"]
        self.journal.open(self.step if found else None, tensorboard=self.config.run.tensorboard)


class _Scored(nn.Module):
    """A model inside its objective, as the one module that processes share out."""

    def __init__(self, model: nn.Module, objective: TrainingObjective) -> None:
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, batch: Batch, generator: torch.Generator) -> dict[str, LossSum]:
        losses = dict(self.objective(batch, generator))
        # What this batch did not use has a gradient of zero and not none: processes must agree on who has one.
        touched = [parameter.flatten()[0] for parameter in self.model.parameters() if parameter.requires_grad]
        name, loss = next(iter(losses.items()))
        losses[name] = loss._replace(total=loss.total + 0 * torch.stack(touched).sum())
        return losses

"""A file of text that a model wrote: it grows by whole batches, and is the same however often it was interrupted."""

import json
import os
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from unmask.errors import FailureError, TrainingError, UsageError
from unmask.model.checkpoint import Checkpoint
from unmask.training.selection import Selection, SelectionConfig
from unmask.training.synthesis import Script, SynthesisConfig, write_batch

_MOST_VAIN_BATCHES = 3
"""After so many batches of which nothing was kept, the filters are at fault."""


@dataclass(frozen=True)
class CorpusConfig:
    """All that decides the texts: the same config on the same machine writes the same file."""

    model: str
    dtype: str
    seed: int = 0
    synthesis: SynthesisConfig = field(default_factory=SynthesisConfig)
    selection: SelectionConfig = field(default_factory=SelectionConfig)


@dataclass(frozen=True)
class CorpusState:
    """How far a corpus is: what was written, what of it was kept, and why the rest was dropped.

    `num_bytes`: of the file, up to the end of the last whole batch. `num_tokens`: of the documents kept.
    `num_written`: tokens that the model wrote for them and for those dropped, in `seconds`.
    """

    num_batches: int = 0
    num_bytes: int = 0
    num_documents: int = 0
    num_tokens: int = 0
    num_written: int = 0
    seconds: float = 0.0
    dropped: dict[str, int] = field(default_factory=dict)


class SyntheticCorpus:
    """One file, and beside it ``FILE.state.json``, which says what wrote it and how far it is.

    Each line holds a "text"; under a chat template also the "messages" it consists of; "finished", whether the model
    came to an end by itself; and "num_tokens". Raise UsageError for a file that something else wrote.
    """

    def __init__(self, config: CorpusConfig, path: Path, checkpoint: Checkpoint) -> None:
        self.config, self.path, self.checkpoint = config, path, checkpoint
        self.script = Script.of(checkpoint.tokenizer)
        if not checkpoint.card.predicts_next:
            raise UsageError(
                f"{checkpoint.card.name} predicts no next tokens, by which documents are written",
                "choose an autoregressive model",
            )
        if not self.script.head:
            raise UsageError(
                "this model has no token to begin a text with, so it cannot write by itself",
                "give unmask convert a corpus of yours",
            )
        if config.synthesis.length <= len(self.script.head):
            raise UsageError(
                f"length={config.synthesis.length} leaves no room after the {len(self.script.head)} tokens that begin "
                "every document"
            )
        self.selection = Selection(config.selection)
        self.state = self._restored()

    @property
    def state_path(self) -> Path:
        return self.path.with_name(self.path.name + ".state.json")

    def fill(self, num_tokens: int, observe: Callable[[CorpusState], None]) -> CorpusState:
        """Write whole batches until documents of `num_tokens` tokens are kept; `observe` is told token by token."""
        vain = 0
        while self.state.num_tokens < num_tokens:
            before = self.state
            self._write_batch(observe)
            vain = 0 if self.state.num_documents > before.num_documents else vain + 1
            if vain == _MOST_VAIN_BATCHES:
                reasons = ", ".join(f"{count} {fault}" for fault, count in self.state.dropped.items())
                raise FailureError(
                    f"nothing of the last {vain} batches was kept: {reasons}", "loosen the filters"
                )
        return self.state

    def _write_batch(self, observe: Callable[[CorpusState], None]) -> None:
        before, began = self.state, time.perf_counter()

        def ahead(written: int) -> None:
            seconds = before.seconds + time.perf_counter() - began
            observe(replace(before, num_written=before.num_written + written, seconds=seconds))

        documents = write_batch(
            self.checkpoint.transformer,
            self.script.head,
            self.config.synthesis,
            stop_token=self.script.stop_token,
            seed=self.config.seed,
            batch=before.num_batches,
            bridge=self.script.bridge,
            observe=ahead,
        )
        entries = [self._entry(document) for document in documents]
        kept, dropped = self.selection.sift([None if entry is None else entry["text"] for entry in entries])
        lines = "".join(json.dumps(entries[index], ensure_ascii=False) + "\n" for index in kept).encode()
        self._append(lines)
        self.state = CorpusState(
            num_batches=before.num_batches + 1,
            num_bytes=before.num_bytes + len(lines),
            num_documents=before.num_documents + len(kept),
            num_tokens=before.num_tokens + sum(len(documents[index]) for index in kept),
            num_written=before.num_written
            + sum(len(document) - len(self.script.head) for document in documents),
            seconds=round(before.seconds + time.perf_counter() - began, 3),
            dropped=dict(sorted((Counter(before.dropped) + dropped).items())),
        )
        self._save()
        observe(self.state)

    def _entry(self, document: list[int]) -> dict[str, Any] | None:
        """Return the line of a document; None for one without an answer where there should be one."""
        tokenizer, script = self.checkpoint.tokenizer, self.script
        entry = {"finished": document[-1] == script.stop_token, "num_tokens": len(document)}
        if not script.bridge:
            return {"text": tokenizer.decode(document).strip(), **entry}
        messages = script.messages(document, tokenizer)
        if messages is None:
            return None
        return {
            "text": "\n\n".join(message["content"] for message in messages),
            "messages": messages,
            **entry,
        }

    def _append(self, lines: bytes) -> None:
        try:
            with self.path.open("ab") as file:
                file.write(lines)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise TrainingError(f"cannot write {self.path}: {error.strerror}", "free some space") from error

    def _save(self) -> None:
        partial = self.state_path.with_name(self.state_path.name + ".partial")
        content = {"config": _plain(self.config), "state": asdict(self.state)}
        try:
            partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
            os.replace(partial, self.state_path)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise TrainingError(f"cannot write {partial}: {error.strerror}", "free some space") from error

    def _restored(self) -> CorpusState:
        """Find the state beside the file, cut off what was written after it, and remember the texts before it."""
        if not self.state_path.exists():
            if self.path.exists():
                raise UsageError(f"{self.path} exists already", "name a new file")
            self.path.parent.mkdir(parents=True, exist_ok=True)
            return CorpusState()
        try:
            content = json.loads(self.state_path.read_text(encoding="utf-8"))
            before, state = content["config"], CorpusState(**content["state"])
            with self.path.open("r+b") as file:
                texts = [json.loads(line)["text"] for line in file.read(state.num_bytes).splitlines()]
                file.truncate(state.num_bytes)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise TrainingError(f"cannot continue {self.path}: {error!r}", "name a new file") from error
        for name, value in _plain(self.config).items():
            if before.get(name) != value:
                raise UsageError(
                    f"{self.path} was written with {name}={before.get(name)}, not {value}",
                    "give the same options to continue it, or another file",
                )
        for text in texts:
            self.selection.keep(text)
        return state


def _plain(config: CorpusConfig) -> dict[str, Any]:
    """Return a config as JSON would give it back."""
    fields: dict[str, Any] = json.loads(json.dumps(asdict(config)))
    return fields

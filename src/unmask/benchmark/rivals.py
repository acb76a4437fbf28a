"""Other programs on the same weights: `transformers`, and llama.cpp through `llama-cpp-python`, where installed."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from unmask.benchmark.contender import Contender, Run
from unmask.decoding.language_model import LanguageModel
from unmask.errors import UsageError
from unmask.model.catalogue import LocalSource, PackageSource
from unmask.model.checkpoint import save_checkpoint
from unmask.model.package import package_file
from unmask.model.store import cache_directory
from unmask.registry import unknown_name

RIVALS = {"transformers": "transformers", "llama.cpp": "llama_cpp"}
"""Name -> the Python package it comes in. They are imported by name, being no dependencies: who has them, has them."""

_PIP = {"transformers": "transformers", "llama.cpp": "llama-cpp-python"}


def installed_rivals() -> tuple[str, ...]:
    """Return the rivals that can be imported here."""
    return tuple(name for name, package in RIVALS.items() if find_spec(package) is not None)


def rivals_for(model: LanguageModel, gguf: Path | None) -> tuple[str, ...]:
    """Return the installed rivals that can hold the model: without a GGUF file llama.cpp cannot."""
    has_file = gguf is not None or gguf_of(model) is not None
    return tuple(name for name in installed_rivals() if name != "llama.cpp" or has_file)


@contextmanager
def open_rivals(names: Sequence[str], model: LanguageModel, gguf: Path | None) -> Iterator[list[Contender]]:
    """Yield rivals that hold the model's weights: float32 in `transformers`, the GGUF file's own in llama.cpp.

    `gguf`: the file for llama.cpp; by default the one the model was read from. Raise UsageError for a rival that is
    unknown or not installed, and for llama.cpp without a file.
    """
    for name in names:
        if name not in RIVALS:
            raise unknown_name("rival", name, tuple(RIVALS))
        if name not in installed_rivals():
            raise UsageError(f"{name} is not installed", f"pip install {_PIP[name]}, or leave it out")
    file = gguf or gguf_of(model)
    if "llama.cpp" in names and file is None:
        raise UsageError(
            "llama.cpp needs a GGUF file, and this model was read from none",
            "give one with --gguf, or leave llama.cpp out of --against",
        )
    with TemporaryDirectory() as scratch:
        contenders: list[Contender] = []
        if "transformers" in names:
            contenders.append(_Transformers.of(model, Path(scratch) / "model"))
        if "llama.cpp" in names and file is not None:
            contenders.append(_LlamaCpp.of(file))
        yield contenders


def gguf_of(model: LanguageModel) -> Path | None:
    """Return the GGUF file that a model was read from, `None` where it was none."""
    source = model.checkpoint.card.source
    if isinstance(source, PackageSource) and (path := package_file(source, cache_directory())).is_file():
        return path
    if isinstance(source, LocalSource) and source.path.endswith(".gguf"):
        return Path(source.path)
    return None


@dataclass(frozen=True)
class _Transformers:
    model: Any
    name: str = "transformers float32"

    @classmethod
    def of(cls, model: LanguageModel, folder: Path) -> "_Transformers":
        """Let `transformers` load the checkpoint from a folder in the hub's layout, in float32."""
        transformers: Any = import_module(RIVALS["transformers"])
        save_checkpoint(model.checkpoint, folder)
        transformers.utils.logging.disable_progress_bar()  # it would run through our own
        theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        return cls(theirs.eval())

    def write(self, prompt_ids: Sequence[int], max_tokens: int) -> Run:
        """Write exactly so many tokens after a prompt, whatever stop tokens come, and time it."""
        watch = _Watch()
        prompt = torch.tensor([list(prompt_ids)])
        with torch.inference_mode():
            tokens = self.model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                do_sample=False,
                max_new_tokens=max_tokens,
                min_new_tokens=max_tokens,
                eos_token_id=None,
                pad_token_id=0,
                streamer=watch,
            )
        seconds = time.perf_counter() - watch.began
        written = tuple(tokens[0, len(prompt_ids) :].tolist())
        return Run(written, watch.first_s, seconds, max_tokens, max_tokens - 1)


class _Watch:
    """A streamer that notes when the first token comes; the prompt is put before it."""

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self.first_s = 0.0
        self._num_put = 0

    def put(self, value: torch.Tensor) -> None:
        self._num_put += 1
        if self._num_put == 2:
            self.first_s = time.perf_counter() - self.began

    def end(self) -> None:
        """Take note of nothing."""


@dataclass(frozen=True)
class _LlamaCpp:
    llama: Any
    name: str

    @classmethod
    def of(cls, path: Path) -> "_LlamaCpp":
        """Load a GGUF file with as many threads as torch has."""
        llama_cpp: Any = import_module(RIVALS["llama.cpp"])
        threads = torch.get_num_threads()
        llama = llama_cpp.Llama(
            str(path), n_ctx=0, n_threads=threads, n_threads_batch=threads, logits_all=False, verbose=False
        )
        return cls(llama, f"llama.cpp {path.stem}")

    def write(self, prompt_ids: Sequence[int], max_tokens: int) -> Run:
        """Write exactly so many tokens after a prompt, whatever stop tokens come, and time it."""
        self.llama.reset()
        began, first_s = time.perf_counter(), 0.0
        tokens: list[int] = []
        for token in self.llama.generate(list(prompt_ids), temp=0.0, top_k=1, repeat_penalty=1.0, reset=True):
            tokens.append(int(token))
            first_s = first_s or time.perf_counter() - began
            if len(tokens) == max_tokens:
                break
        return Run(tuple(tokens), first_s, time.perf_counter() - began, max_tokens, max_tokens - 1)

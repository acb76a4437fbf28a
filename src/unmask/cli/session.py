"""What comes before a command can run a model: the process made ready, the model opened, the prompt read."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, cast

from unmask import __version__
from unmask.cli.output import progress_line
from unmask.errors import FailureError, UsageError
from unmask.runtime import processor_name, thread_count, tune_allocator, usable_memory

if TYPE_CHECKING:
    from unmask.decoding.language_model import LanguageModel
    from unmask.engine.engine import Engine
    from unmask.model.checkpoint import Checkpoint, Precision
    from unmask.model.quantize import Quantisation


def prepare_process() -> None:
    """Tune the allocator and keep torch within the cores this process may use."""
    tune_allocator()
    import torch

    if (threads := thread_count()) is not None:
        torch.set_num_threads(threads)


def settle_threads(device: str) -> None:
    """Let torch decode on a CPU with the fastest number of threads just now, unless ``OMP_NUM_THREADS`` says it."""
    if "OMP_NUM_THREADS" in os.environ or not device.startswith("cpu"):
        return
    import torch

    from unmask.model.thread_probe import fastest_thread_count

    torch.set_num_threads(fastest_thread_count(torch.get_num_threads()))


def open_model(
    source: str,
    *,
    adapter: str | None,
    dtype: str,
    device: str,
    offline: bool,
    quantize: str | None = None,
    tensor_parallel: int = 1,
) -> "LanguageModel":
    """Load a model, showing what takes time."""
    with progress_line() as progress:
        prepare_process()
        from unmask.decoding.language_model import load

        return load(
            source,
            adapter=adapter,
            dtype=cast("Precision", dtype),  # which load checks
            device=device,
            quantize=cast("Quantisation | None", quantize),
            tensor_parallel=tensor_parallel,
            offline=offline,
            progress=progress,
        )


def open_checkpoint(
    source: str, *, adapter: str | None, dtype: str, device: str, offline: bool
) -> "Checkpoint":
    """Load weights and tokenizer as training needs them, not laid out for inference too, showing what takes time."""
    with progress_line() as progress:
        prepare_process()
        from unmask.model.checkpoint import load_checkpoint

        return load_checkpoint(
            source,
            adapter=adapter,
            dtype=cast("Precision", dtype),  # which it checks
            device=device,
            offline=offline,
            progress=progress,
        )


def count_pages(model: "LanguageModel", cache_mib: int) -> int:
    """Return how many pages of keys and values so much memory holds; UsageError for none, or more than there is."""
    import torch

    from unmask.engine.engine import DEFAULT_PAGE_SIZE
    from unmask.engine.paged_cache import PagedCache

    transformer = model.denoiser.transformer
    page_bytes = PagedCache.page_bytes(transformer.config, DEFAULT_PAGE_SIZE, transformer.dtype)
    num_pages = cache_mib * 2**20 // page_bytes
    if num_pages < 1:
        raise UsageError(f"--cache-mib {cache_mib} holds no page of {page_bytes} bytes", "give more")
    device = transformer.device
    on_gpu = device.type == "cuda"
    memory = torch.cuda.get_device_properties(device).total_memory if on_gpu else usable_memory()
    if cache_mib > memory // 2**20:
        raise UsageError(
            f"--cache-mib {cache_mib}: there are {memory // 2**20} MiB of memory on {device}", "give less"
        )
    return num_pages


def open_engine(model: "LanguageModel", cache_mib: int, *, token_budget: int, max_requests: int) -> "Engine":
    """Return an engine whose keys and values take so much memory."""
    from unmask.engine.engine import Engine

    return Engine(
        model.denoiser,
        model.tokenizer,
        num_pages=count_pages(model, cache_mib),
        token_budget=token_budget,
        max_requests=max_requests,
    )


def calibrate(engine: "Engine", model: "LanguageModel") -> None:
    """Let the planner know what forwards cost here: from the cache directory where that was measured before."""
    import torch

    from unmask.engine.curve_file import CurveFile
    from unmask.model.store import cache_directory

    transformer, adapter = model.checkpoint.transformer, model.checkpoint.adapter
    on_gpu = transformer.device.type == "cuda"
    key = {
        "model": str(transformer.config),
        "adapter": "none" if adapter is None else str(adapter.config),
        "dtype": str(transformer.dtype),
        "quantize": str(model.quantize),
        "machine": torch.cuda.get_device_name(transformer.device) if on_gpu else processor_name(),
        "threads": str(torch.get_num_threads()),
        "versions": f"unmask {__version__}, torch {torch.__version__}",
    }
    engine.calibrate(CurveFile.of(cache_directory(), key))


def read_prompt(text: str | None, file: Path | None) -> str:
    """Return the prompt itself: an argument, standard input for ``-``, or a file's content."""
    if file is not None:
        try:
            data = file.read_bytes()
        except OSError as error:
            raise FailureError(f"cannot read {file}: {error.strerror}", "check its path") from error
        return _decode(data, str(file))
    assert text is not None
    if text == "-":
        return _decode(sys.stdin.buffer.read(), "standard input")
    return _decode(text.encode("utf-8", "surrogateescape"), "the argument")


def _decode(data: bytes, origin: str) -> str:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"the prompt from {origin} is not UTF-8 text: byte {error.start} is wrong"
        ) from error
    if not text.strip():
        raise UsageError(f"the prompt from {origin} is empty", "give a text")
    return text

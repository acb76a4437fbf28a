"""Processes that run one transformer together, each its share of it.

The first process leads, and it alone knows of prompts, drafts and laws. It tells the others before every forward the
layout, the inputs and the cache, of which each has the keys and values of its own heads.
"""

import atexit
import io
import multiprocessing
import pickle
import shutil
import signal
import tempfile
from collections.abc import Iterator, MutableMapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import count
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.utils.weak import WeakTensorKeyDictionary

from unmask.config import AdapterConfig, TransformerConfig
from unmask.errors import ProcessLostError, UsageError
from unmask.layout import Layout
from unmask.model.adapter import Adapter
from unmask.model.cache import Cache
from unmask.model.shared import SharedAdapter, SharedTransformer, shared_config
from unmask.model.transformer import Transformer

_LAST_WORDS_S = 5.0
_STOP = b""


def share_out(
    transformer: Transformer, adapter: Adapter | None, num_processes: int
) -> tuple["LeadingTransformer", "SharedAdapter | None"]:
    """Start the other processes and return what runs in their lead; they end with this process, or at `close`.

    Raises UsageError where heads or inner units cannot be shared out evenly, for devices other than CPUs, and in a
    process that runs together with others already.
    """
    shared_config(transformer.config, num_processes)
    if dist.is_initialized():
        raise UsageError("this process is one of several already", "close the model that it shares out")
    if transformer.device.type != "cpu":
        raise UsageError(
            f"tensor parallelism on device {str(transformer.device)!r} has not been tried",
            "choose device cpu",
        )
    spawning = multiprocessing.get_context("spawn")
    folder = tempfile.mkdtemp(prefix="unmask-")
    place = f"file://{folder}/store"
    processes: list[BaseProcess] = []
    ends: list[Connection] = []
    adapter_config = None if adapter is None else adapter.config
    for rank in range(1, num_processes):
        theirs, ours = spawning.Pipe(duplex=False)
        arguments = (rank, num_processes, place, theirs, transformer.config, adapter_config)
        settings = (transformer.dtype, torch.get_num_threads())
        processes.append(spawning.Process(target=_follow, args=(*arguments, *settings), daemon=True))
        processes[-1].start()
        theirs.close()
        ends.append(ours)
    mesh = _join(0, num_processes, place)
    leading = LeadingTransformer(transformer, mesh, processes, ends)
    shutil.rmtree(folder)
    return leading, None if adapter is None else SharedAdapter(adapter, mesh)


class LeadingTransformer(SharedTransformer):
    """The first process's share, whose forwards the others follow."""

    def __init__(
        self,
        source: Transformer,
        mesh: DeviceMesh,
        processes: Sequence[BaseProcess],
        ends: Sequence[Connection],
    ) -> None:
        super().__init__(source, mesh)
        self._processes, self._ends = processes, ends
        self._numbers: MutableMapping[Tensor, int] = (
            WeakTensorKeyDictionary()
        )  # of the keys and values of caches
        self._known: set[int] = set()
        self._counter = count()
        atexit.register(self.close)

    def forward(
        self, inputs: Tensor, layout: Layout, cache: Cache | None = None, adapter: Adapter | None = None
    ) -> Tensor:
        """Run as `Transformer.forward` does; raises ProcessLostError when another process has ended."""
        x = (inputs if inputs.is_floating_point() else self.embed_tokens(inputs)).contiguous()
        order = self._spelled(layout, cache, uses_adapter=adapter is not None)
        try:
            for end in self._ends:
                end.send_bytes(order)
            dist.broadcast(x, 0)
            return super().forward(x, layout, cache, adapter)
        except (OSError, RuntimeError) as error:
            if wait([process.sentinel for process in self._processes], timeout=1.0):
                raise ProcessLostError("a process that runs a part of the model has ended") from error
            raise

    def close(self) -> None:
        """Let the other processes end."""
        atexit.unregister(self.close)
        for end in self._ends:
            with suppress(OSError):
                end.send_bytes(_STOP)
            end.close()
        for process in self._processes:
            process.join(_LAST_WORDS_S)
            process.kill()
        if self._ends:
            dist.destroy_process_group()
        self._processes, self._ends = (), ()

    def _spelled(self, layout: Layout, cache: Cache | None, *, uses_adapter: bool) -> bytes:
        """Return an order as bytes; those caches that are gone are told to be forgotten."""
        alive = set(self._numbers.values())
        order = _Order(layout, cache, uses_adapter, tuple(self._known - alive))
        buffer = io.BytesIO()
        _Pickler(buffer, self._numbers, self._counter).dump(order)
        self._known = set(self._numbers.values())
        return buffer.getvalue()


@dataclass(frozen=True)
class _Order:
    """A forward to follow. `forgotten`: numbers of keys and values that no cache has any more."""

    layout: Layout
    cache: Cache | None
    uses_adapter: bool
    forgotten: tuple[int, ...]


class _Pickler(pickle.Pickler):
    """Spells caches without their keys and values, which get numbers."""

    def __init__(
        self, file: io.BytesIO, numbers: MutableMapping[Tensor, int], counter: Iterator[int]
    ) -> None:
        super().__init__(file)
        self._numbers, self._counter = numbers, counter

    def persistent_id(self, value: object) -> tuple[int, torch.Size, torch.dtype] | None:
        """Return number, shape and dtype of keys or values: the tensors of floats in a cache."""
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return None
        if value not in self._numbers:
            self._numbers[value] = next(self._counter)
        return self._numbers[value], value.shape, value.dtype


class _Unpickler(pickle.Unpickler):
    """Gives caches this process's own keys and values, by their numbers."""

    def __init__(self, file: io.BytesIO, stores: dict[int, Tensor]) -> None:
        super().__init__(file)
        self._stores = stores

    def persistent_load(self, known_as: tuple[int, torch.Size, torch.dtype]) -> Tensor:
        number, shape, dtype = known_as
        if number not in self._stores:
            self._stores[number] = torch.zeros(shape, dtype=dtype)
        return self._stores[number]


@torch.inference_mode()
def _follow(
    rank: int,
    num_processes: int,
    place: str,
    orders: Connection,
    config: TransformerConfig,
    adapter_config: AdapterConfig | None,
    dtype: torch.dtype,
    num_threads: int,
) -> None:
    """Be one of the other processes until the first says stop, or ends."""
    for interruption in (signal.SIGINT, signal.SIGTERM):  # which may come to all; the first process decides
        signal.signal(interruption, signal.SIG_IGN)
    torch.set_num_threads(num_threads)
    mesh = _join(rank, num_processes, place)
    with torch.device("meta"):
        bare = Transformer(replace(config, vocab_size=1, tie_embeddings=True)).requires_grad_(False)
        bare_adapter = None if adapter_config is None else Adapter(config, adapter_config)
    transformer = SharedTransformer(bare.to(dtype).to_empty(device="cpu"), mesh)
    adapter = None if bare_adapter is None else SharedAdapter(bare_adapter.to_empty(device="cpu"), mesh)
    stores: dict[int, Tensor] = {}
    with suppress(EOFError):
        while message := orders.recv_bytes():
            order: _Order = _Unpickler(io.BytesIO(message), stores).load()
            for number in order.forgotten:
                del stores[number]
            x = torch.empty(order.layout.num_tokens, config.hidden_size, dtype=dtype)
            dist.broadcast(x, 0)
            transformer(x, order.layout, order.cache, adapter if order.uses_adapter else None)


def _join(rank: int, num_processes: int, place: str) -> DeviceMesh:
    dist.init_process_group("gloo", init_method=place, rank=rank, world_size=num_processes)
    return init_device_mesh("cpu", (num_processes,))

"""``unmask doctor``: what this machine offers, found out by trying."""

import os
import platform
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version

from rich.console import Console
from rich.table import Table
from rich.text import Text

from unmask import __version__
from unmask.cli.arguments import DebugFlag, JsonFlag
from unmask.cli.output import print_json
from unmask.cli.session import prepare_process
from unmask.runtime import AllocatorState, processor_name, tune_allocator, usable_cores

_PACKAGES = (
    "torch",
    "numpy",
    "safetensors",
    "tokenizers",
    "jinja2",
    "huggingface_hub",
    "gguf",
    "pydantic",
    "typer",
)


def doctor(json: JsonFlag = False, debug: DebugFlag = False) -> None:
    """Report versions, devices, threads and allocator, and try every way to compute attention."""
    prepare_process()
    import torch

    from unmask.model.attention_probe import probe_attention
    from unmask.model.kernels import kernels
    from unmask.model.native import native
    from unmask.model.store import cache_directory, folder_bytes

    devices = _devices()
    paths = [path for device in devices for path in probe_attention(torch.device(device))]
    allocator = tune_allocator()
    works, reason = kernels() is not None, native().reason
    folder = cache_directory()
    if json:
        print_json(
            {
                "versions": _versions(),
                "system": {"platform": platform.platform(), "processor": processor_name()},
                "devices": devices,
                "threads": _threads(),
                "allocator": asdict(allocator),
                "kernels": {"works": works, "reason": reason},
                "cache": {"folder": str(folder), "bytes": folder_bytes(folder)},
                "attention": [asdict(path) for path in paths],
            }
        )
        return
    threads = _threads()
    rows = [
        ("versions", ", ".join(f"{name} {number}" for name, number in _versions().items())),
        ("system", f"{platform.platform()}, {processor_name()}"),
        *(("device", f"{name}: {what}") for name, what in devices.items()),
        ("threads", f"{threads['torch']} of {threads['usable_cores']:g} usable cores"),
        ("allocator", f"{allocator.name}, {_habit(allocator)} ({allocator.reason})"),
        ("kernels", f"{'work' if works else 'none, torch serves'} ({reason})"),
        ("cache", f"{folder}, {folder_bytes(folder) / 1e6:.0f} MB"),
        *(
            ("attention", f"{p.device} {p.dtype} {p.path}: {'works' if p.works else 'fails'}, {p.detail}")
            for p in paths
        ),
    ]
    table = Table.grid(padding=(0, 2))
    for name, value in rows:
        table.add_row(Text(name, style="bold"), Text(value))
    Console(highlight=False).print(table)


def _habit(allocator: AllocatorState) -> str:
    return (
        "keeps freed buffers" if allocator.keeps_freed_buffers else "gives freed buffers back to the kernel"
    )


def _versions() -> dict[str, str]:
    found = {"unmask": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "missing"
    return found


def _devices() -> dict[str, str]:
    """Return every device torch can reach, with what it calls itself."""
    import torch

    devices = {"cpu": torch.backends.cpu.get_cpu_capability()}
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        devices[f"cuda:{index}"] = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    if torch.backends.mps.is_available():
        devices["mps"] = "Metal"
    return devices


def _threads() -> dict[str, object]:
    import torch

    return {
        "torch": torch.get_num_threads(),
        "usable_cores": usable_cores(),
        "machine_cores": os.cpu_count(),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS"),
    }

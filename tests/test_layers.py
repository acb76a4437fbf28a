"""The layer rule: a module imports its own package and strictly lower layers; some modules never import torch."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "unmask"

LAYERS = {
    "errors": -1,
    "config": 0,
    "registry": 0,
    "rng": 0,
    "chat_template": 0,
    "tokenizer": 1,
    "runtime": 0,
    "layout": 1,
    "diffusion": 1,
    "model": 2,
    "testing": 4,
    "decoding": 3,
    "training": 4,
    "engine": 5,
    "evaluation": 5,
    "serving": 6,
    "benchmark": 6,
    "cli": 7,
    "__init__": 8,
    "__main__": 8,
}
"""First name below ``unmask`` -> layer. The facade and the entry point lie above everything; nobody imports them."""

PLAIN_VALUES = {"__version__"}
"""What any layer may take from the package itself."""

TORCH_FREE = (
    "",
    "errors",
    "config",
    "registry",
    "rng",
    "layout",
    "runtime",
    "cli",
    "model.catalogue",
    "engine.pages",
    "engine.request",
    "engine.scheduler",
    "engine.planner",
    "engine.cost_curve",
    "engine.acceptance",
    "evaluation.tasks",
    "serving.answers",
    "serving.body",
    "serving.errors",
    "serving.fields",
    "serving.formats",
    "serving.keys",
    "serving.messages",
    "serving.protocol",
    "serving.settings",
)
"""Modules, below ``unmask``, that must be importable without torch; a package stands for everything in it."""

MODULES = {".".join(path.relative_to(SOURCE).with_suffix("").parts): path for path in SOURCE.rglob("*.py")}


def imported_names(source: str, module: str) -> Iterator[str]:
    """Yield the absolute dotted name of everything `source` imports, at any depth of nesting."""
    package = ["unmask", *module.split(".")][:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*start, *([node.module] if node.module else [])])
            yield from (f"{origin}.{alias.name}" for alias in node.names)


def faults(source: str, module: str) -> list[str]:
    """Return one sentence for each import of `module` (dotted, below ``unmask``) that breaks the layer rule."""
    own = module.split(".")[0]
    if own not in LAYERS:
        return [f"unmask.{module}: '{own}' has no layer; give it one in {Path(__file__).name}"]
    found = []
    for name in imported_names(source, module):
        root, _, rest = name.partition(".")
        if root != "unmask" or rest in PLAIN_VALUES:
            continue
        other = rest.split(".")[0] or "__init__"
        if other == own:
            continue
        if other not in LAYERS:
            found.append(f"unmask.{module} takes '{other}' from the facade; import it from where it lives")
        elif LAYERS[other] >= LAYERS[own]:
            found.append(f"unmask.{module} (layer {LAYERS[own]}) imports {name} (layer {LAYERS[other]})")
    return found


@pytest.mark.parametrize("module", sorted(MODULES))
def test_module_imports_only_lower_layers(module: str) -> None:
    assert faults(MODULES[module].read_text(), module) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("layout", "from unmask.model.transformer import Transformer"),
        ("layout", "import unmask.diffusion.masked"),
        ("model.transformer", "def late():\n    from unmask.decoding import generate"),
        ("model.transformer", "from ..decoding import generate"),
        ("diffusion.masked", "from unmask import layout"),
        ("training.loop", "import unmask"),
        ("decoding.rules", "from unmask import Options"),
        ("utils", "import math"),
    ],
)
def test_a_forbidden_import_is_found(module: str, source: str) -> None:
    assert len(faults(source, module)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("model.families.llama", "from ..transformer import Transformer"),
        ("model.families.llama", "from unmask.model import checkpoint"),
        ("decoding.generate", "from unmask.layout import Layout\nimport torch"),
        ("cli.main", "from unmask import __version__"),
        ("__init__", "from unmask.decoding.options import Options"),
    ],
)
def test_an_allowed_import_passes(module: str, source: str) -> None:
    assert faults(source, module) == []


def torch_free_modules() -> list[str]:
    """Return the dotted names of all modules on the torch-free list that exist."""

    def listed(module: str) -> bool:
        name = module.removesuffix("__init__").rstrip(".")
        return name in TORCH_FREE or name.split(".")[0] in TORCH_FREE[1:]

    names = [f"unmask.{module}".removesuffix(".__init__") for module in MODULES if listed(module)]
    return sorted(name for name in names if name != "unmask.__main__")


def test_torch_free_modules_do_not_import_torch() -> None:
    names = torch_free_modules()
    assert {"unmask", "unmask.errors", "unmask.layout", "unmask.cli.main"} <= set(names)
    code = (
        "import importlib, sys\n"
        f"for name in {names!r}:\n"
        "    importlib.import_module(name)\n"
        "    assert 'torch' not in sys.modules, f'{name} imports torch'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_help_page_does_not_import_torch() -> None:
    code = (
        "import sys\n"
        "from unmask.cli.main import main\n"
        "status = main(['--help'])\n"
        "assert 'torch' not in sys.modules\n"
        "sys.exit(status)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "generate" in done.stdout

"""What surrounds the code: versions, the public surface, pages that must not go stale, and no side effects."""

import importlib.util
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import unmask

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def bare_name(requirement: str) -> str:
    """Return the distribution that a requirement or pin names, normalised."""
    match = re.match(r"[\w.-]+", requirement)
    assert match is not None
    return re.sub(r"[-_.]+", "-", match[0]).lower()


def test_every_dependency_is_pinned_for_ci() -> None:
    pins = [
        line
        for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if line and not line.startswith("#")
    ]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", pin) for pin in pins)
    pinned = {bare_name(pin) for pin in pins}
    extras = PROJECT["optional-dependencies"].values()
    wanted = {bare_name(item) for group in (PROJECT["dependencies"], *extras) for item in group}
    assert wanted - {"unmask"} <= pinned
    assert "torch==2.13.0" in pins


def test_every_import_is_a_dependency() -> None:
    modules = {
        name.split(".")[0]
        for path in (ROOT / "src").rglob("*.py")
        for name in re.findall(r"^\s*(?:from|import) (\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    ours = modules - set(sys.stdlib_module_names) - {"unmask", "triton"}  # which CUDA builds of torch bring
    extras = (
        PROJECT["optional-dependencies"][name]
        for name in ("plot", "eval", "grammar", "harness", "ray", "serve", "train")
    )
    ours_too = (*PROJECT["dependencies"], *(item for extra in extras for item in extra))
    declared = {bare_name(item).replace("-", "_") for item in ours_too}
    assert ours <= declared


def test_the_public_surface() -> None:
    assert set(unmask.__all__) == set(dir(unmask))
    assert all(getattr(unmask, name) is not None for name in unmask.__all__)
    with pytest.raises(AttributeError, match="'generate'"):
        unmask.generate  # noqa: B018


def test_importing_changes_nothing() -> None:
    code = (
        "import os, signal, sys, threading\n"
        "before = dict(os.environ), signal.getsignal(signal.SIGINT), sys.stdout\n"
        "import unmask, unmask.decoding.language_model, unmask.training, unmask.cli.main, torch\n"
        "assert before == (dict(os.environ), signal.getsignal(signal.SIGINT), sys.stdout)\n"
        "assert torch.get_default_dtype() == torch.float32\n"
        "assert threading.active_count() == 1\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == done.stderr == ""


@pytest.mark.parametrize("name", ["cli", "published"])
def test_the_generated_pages_are_up_to_date(name: str) -> None:
    path = ROOT / "docs" / f"make_{name}_page.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    maker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(maker)
    assert (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8") == maker.page(), "run `make docs`"


@pytest.mark.parametrize(
    "page", ["README.md", *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
)
def test_links_and_paths_in_the_pages_exist(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    folder = (ROOT / page).parent
    links = [link for link in re.findall(r"\]\(([^)#\s]+)\)", text) if "://" not in link]
    assert [link for link in links if not (folder / link).exists()] == []


def test_the_python_example_in_the_readme_compiles() -> None:
    examples = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert examples
    for example in examples:
        compile(example, "README.md", "exec")

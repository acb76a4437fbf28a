"""The packages of docs/extend, installed beside ours and found through their entry points."""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "docs" / "extend"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every example installed as pip leaves it: the module, and a dist-info with its entry points."""
    site = tmp_path_factory.mktemp("site")
    for manifest in EXAMPLES.glob("*/pyproject.toml"):
        project = tomllib.loads(manifest.read_text())["project"]
        (module,) = manifest.parent.glob("*.py")
        shutil.copy(module, site)
        name = project["name"].replace("-", "_")
        info = site / f"{name}-{project['version']}.dist-info"
        info.mkdir()
        described = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
        (info / "METADATA").write_text(described)
        lines = []
        for group, points in project["entry-points"].items():
            lines += [f"[{group}]", *(f"{point} = {target}" for point, target in points.items())]
        (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    return site


USE = """
import torch
from unmask.decoding.rules import RULES
from unmask.diffusion import PROCESSES, SCHEDULES, build_process, diffusion_loss
from unmask.diffusion.markov import MarkovChain
from unmask.testing import check_process, check_rule, check_schedule

assert "sigmoid" in SCHEDULES.names() and "ring" in PROCESSES.names() and "nearby" in RULES.names()
schedule = SCHEDULES.parse("sigmoid:8")
check_schedule(schedule)
check_rule(RULES.parse("nearby:0.5,3"))
for text in ("ring", "ring:2.5"):
    check_process(build_process(text, 5, None, SCHEDULES.parse("linear")))
    check_process(build_process(text, 6, None, schedule))
for text in ("masked", "uniform", "hybrid:0.2"):
    check_process(build_process(text, 4, 4, schedule))

process = build_process("ring:3", 6, None, SCHEDULES.parse("polynomial:3"))
chain = MarkovChain.random(6, torch.Generator().manual_seed(0))
generator = torch.Generator().manual_seed(1)
rows = [chain.sample(32, 8, generator) for _ in range(24)]
denoise = chain.denoiser(process)
losses = torch.stack([diffusion_loss(denoise, x0, process, generator).total for x0 in rows]) / 32
start = process.prior_nll(rows[0]).sum(-1).mean()
error = losses.std() / len(losses) ** 0.5
print("off by", float((losses.mean() + start - chain.entropy(8)) / error), "standard errors of", float(error))
assert (losses.mean() + start - chain.entropy(8)).abs() < 3 * error < 1
"""


def test_the_examples_are_found_and_keep_the_contracts(installed: Path) -> None:
    path = os.pathsep.join([str(installed), str(Path(__file__).parents[2] / "src"), *sys.path[1:]])
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", USE],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stderr
    assert "standard errors" in done.stdout


def test_every_example_is_one_file_and_on_its_page() -> None:
    page = (EXAMPLES / "README.md").read_text()
    folders = sorted(manifest.parent for manifest in EXAMPLES.glob("*/pyproject.toml"))
    assert [folder.name for folder in folders] == ["process", "rule", "schedule"]
    for folder in folders:
        (module,) = folder.glob("*.py")
        assert f"{folder.name}/{module.name}" in page

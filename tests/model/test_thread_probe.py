"""The probe answers within its bounds, and leaves torch as it was."""

import pytest
import torch

from unmask.cli.session import settle_threads
from unmask.model.thread_probe import fastest_thread_count, preferred_count


@pytest.mark.parametrize("most", [1, 2, 3])
def test_the_answer_is_in_bounds(most: int) -> None:
    before = torch.get_num_threads()
    assert 1 <= fastest_thread_count(most) <= most
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("seconds", "count"),
    [
        ({1: 1.0}, 1),
        ({1: 1.0, 2: 0.6}, 2),
        ({1: 1.0, 2: 1.05}, 2),  # no slower to speak of
        ({1: 1.0, 2: 30.0}, 1),  # another program holds a core
        ({1: 1.0, 2: 0.6, 4: 0.62, 8: 9.0}, 4),
    ],
)
def test_the_preferred_count(seconds: dict[int, float], count: int) -> None:
    assert preferred_count(seconds) == count


def test_threads_are_settled_for_a_cpu_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    asked: list[int] = []

    def probe(most: int) -> int:
        asked.append(most)
        return most

    monkeypatch.setattr("unmask.model.thread_probe.fastest_thread_count", probe)
    settle_threads("cuda:1")
    assert asked == []
    settle_threads("cpu")
    assert asked == [torch.get_num_threads()]

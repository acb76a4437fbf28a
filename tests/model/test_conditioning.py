"""The ports of a denoiser: silent before training, heard after it, stored beside the weights."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_models import CONFIG, random_transformer, tiny_checkpoint
from torch import Tensor

from unmask.errors import CheckpointError
from unmask.model.checkpoint import load_checkpoint, save_checkpoint
from unmask.model.conditioning import WEIGHTS_FILE, Conditioning
from unmask.model.denoiser import Denoiser

MASK = CONFIG.vocab_size - 1


def trained_ports() -> Conditioning:
    """Return ports that both say something."""
    ports = Conditioning(CONFIG.hidden_size, time=True, belief=True)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in ports.parameters():
            parameter.normal_(0.0, 0.3, generator=generator)
    return ports.requires_grad_(False)


@pytest.fixture
def noisy() -> Tensor:
    return torch.randint(MASK, (2, 7), generator=torch.Generator().manual_seed(1)).index_fill(
        1, torch.tensor([1, 4]), MASK
    )


@pytest.fixture
def belief(noisy: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(*noisy.shape, MASK, generator=generator).softmax(-1)


def denoiser(conditioning: Conditioning | None) -> Denoiser:
    return Denoiser(random_transformer(), mask_token_id=MASK, logit_shift=False, conditioning=conditioning)


@torch.no_grad()
def test_new_ports_change_nothing(noisy: Tensor, belief: Tensor) -> None:
    time = torch.tensor([[0.3], [0.9]])
    silent = denoiser(Conditioning(CONFIG.hidden_size, time=True, belief=True)).whole(noisy, time, belief)
    torch.testing.assert_close(silent, denoiser(None).whole(noisy, time), rtol=0, atol=1e-6)


@torch.no_grad()
def test_each_port_is_heard(noisy: Tensor, belief: Tensor) -> None:
    model, time = denoiser(trained_ports()), torch.tensor([[0.3], [0.9]])
    base = model.whole(noisy, time, belief)
    assert base.shape == (2, 7, MASK)
    assert not torch.allclose(base, model.whole(noisy, time), atol=1e-2)
    moved = model.whole(noisy, torch.tensor([[0.3], [0.5]]), belief)
    torch.testing.assert_close(moved[0], base[0])
    assert not torch.allclose(moved[1], base[1], atol=1e-2)


@torch.no_grad()
def test_a_whole_sequence_sees_both_ways_and_rows_stay_apart(noisy: Tensor) -> None:
    model, time = denoiser(None), torch.zeros(2, 1)
    base = model.whole(noisy, time)
    changed = noisy.clone()
    changed[0, 6] = (changed[0, 6] + 1) % MASK
    after = model.whole(changed, time)
    assert not torch.allclose(after[0, 0], base[0, 0], atol=1e-4)
    torch.testing.assert_close(after[1], base[1])
    torch.testing.assert_close(model.whole(noisy[1:], time[1:])[0], base[1])


def test_ports_are_stored_with_the_checkpoint(tmp_path: Path) -> None:
    ports = trained_ports()
    save_checkpoint(replace(tiny_checkpoint(), conditioning=ports), tmp_path / "model")
    loaded = load_checkpoint(str(tmp_path / "model")).conditioning
    assert loaded is not None
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in ports.state_dict().items())
    path = tmp_path / "model" / WEIGHTS_FILE
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(CheckpointError, match="does not fit the model"):
        load_checkpoint(str(tmp_path / "model"))


def test_a_checkpoint_without_ports_has_none(tmp_path: Path) -> None:
    save_checkpoint(tiny_checkpoint(), tmp_path / "model")
    assert load_checkpoint(str(tmp_path / "model")).conditioning is None

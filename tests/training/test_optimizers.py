"""Muon's steps are orthogonal, the parameters are shared out rightly, the average is one, the rate goes up and down."""

import pytest
import torch
from torch import nn

from unmask.config import TransformerConfig
from unmask.training.average import WeightAverage
from unmask.training.config import AdamWTable, MuonTable
from unmask.training.initialisation import random_transformer
from unmask.training.learning_rate import WarmupStableDecay
from unmask.training.optimizers import Muon, build_optimizers, orthogonalise, set_learning_rate

SHAPE = TransformerConfig(
    vocab_size=40,
    hidden_size=64,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_size=16,
    intermediate_size=96,
    max_positions=16,
    qkv_bias=True,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("shape", [(24, 24), (16, 50), (50, 16)])
def test_orthogonalising_levels_singular_values_and_keeps_singular_vectors(shape: tuple[int, int]) -> None:
    u, _ = torch.linalg.qr(torch.randn(shape[0], min(shape), generator=generator()))
    v, _ = torch.linalg.qr(torch.randn(shape[1], min(shape), generator=generator(1)))
    values = torch.linspace(1, 0.05, min(shape))
    levelled = orthogonalise(u @ torch.diag(values) @ v.T * 37)
    inner = u.T @ levelled @ v
    assert ((inner.diagonal() > 0.6) & (inner.diagonal() < 1.3)).all()
    torch.testing.assert_close(inner, torch.diag(inner.diagonal()), atol=1e-4, rtol=0)


def test_a_muon_step_is_nesterovs_momentum_orthogonalised() -> None:
    weight = nn.Parameter(torch.randn(6, 4, generator=generator()))
    gradients = [torch.randn(6, 4, generator=generator(seed)) for seed in (1, 2)]
    expected, momentum = weight.detach().clone(), torch.zeros(6, 4)
    optimizer = Muon([weight], 0.9, weight_decay=0.5)
    set_learning_rate([optimizer], 0.1)
    for gradient in gradients:
        weight.grad = gradient.clone()
        optimizer.step()
        momentum = 0.9 * momentum + 0.1 * gradient
        direction = orthogonalise(0.1 * gradient + 0.9 * momentum)
        expected = expected * (1 - 0.1 * 0.5) - 0.1 * 0.2 * 6**0.5 * direction
    torch.testing.assert_close(weight.detach(), expected)


def test_muon_gets_the_matrices_inside_layers_and_adamw_the_rest() -> None:
    model = random_transformer(SHAPE, generator())
    muon, adamw = build_optimizers(model, MuonTable())
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    taken = {names[id(p)]: type(o) for o in (muon, adamw) for g in o.param_groups for p in g["params"]}
    assert taken.keys() == dict(model.named_parameters()).keys()
    for name, kind in taken.items():
        inside = name.startswith("layers.") and "norm" not in name and not name.endswith("bias")
        assert (kind is Muon) == inside, name
    for group in adamw.param_groups:
        decays = group["weight_decay"] > 0
        assert all((parameter.ndim == 2) == decays for parameter in group["params"])
    assert set(map(type, build_optimizers(model, AdamWTable()))) == {torch.optim.AdamW}


def test_frozen_parameters_are_left_out() -> None:
    model = random_transformer(SHAPE, generator())
    model.embed.requires_grad_(False)
    taken = [p for o in build_optimizers(model, MuonTable()) for g in o.param_groups for p in g["params"]]
    assert all(parameter is not model.embed.weight for parameter in taken)


def test_random_weights_have_the_stated_spread() -> None:
    model = random_transformer(SHAPE, generator())
    for name, parameter in model.named_parameters():
        if "norm" in name:
            assert (parameter == 1).all(), name
        elif name.endswith("bias"):
            assert (parameter == 0).all(), name
        else:
            ends_residual = name.endswith(("attention.o.weight", "mlp.down.weight"))
            spread = 0.02 / 6**0.5 if ends_residual else 0.02
            assert abs(float(parameter.detach().std()) / spread - 1) < 0.1, name
    again = random_transformer(SHAPE, generator())
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_the_average_is_the_weighted_mean_of_what_it_saw() -> None:
    model = nn.Linear(1, 1, bias=False)
    values = [1.0, -2.0, 5.0, 3.0]
    with torch.no_grad():
        model.weight.fill_(values[0])
    average, expected = WeightAverage(model, 0.2), values[0]
    for number, value in enumerate(values[1:]):
        with torch.no_grad():
            model.weight.fill_(value)
        average.update(number)
        decay = min(0.2, (1 + number) / (10 + number))
        expected = decay * expected + (1 - decay) * value
    assert float(average.weights["weight"]) == pytest.approx(expected)
    with average.applied():
        assert model.weight.item() == pytest.approx(expected)
    assert model.weight.item() == values[-1]
    assert float(average.weights["weight"]) == pytest.approx(expected)


def test_a_long_average_forgets_its_random_start() -> None:
    model = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(1000.0)
    average = WeightAverage(model, 0.9999)
    with torch.no_grad():
        model.weight.fill_(1.0)
    for number in range(100):
        average.update(number)
    assert float(average.weights["weight"]) == pytest.approx(1.0, abs=1e-3)


def test_the_rate_rises_stays_and_falls() -> None:
    rates = WarmupStableDecay(peak=2.0, warmup_steps=4, decay_share=0.5)
    assert [rates.at(step, step / 16) for step in range(4)] == [0.5, 1.0, 1.5, 2.0]
    assert {rates.at(step, step / 16) for step in range(4, 9)} == {2.0}
    assert [rates.at(step, step / 16) for step in (12, 14)] == [1.0, 0.5]
    assert WarmupStableDecay(2.0, 0, 0.0).at(0, 0.0) == WarmupStableDecay(2.0, 0, 0.0).at(9, 0.99) == 2.0

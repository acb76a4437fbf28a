"""Checks that schedules and processes must pass, ours and those of other packages; `unmask.testing` offers them."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from unmask.diffusion.denoising import Prediction
from unmask.diffusion.process import Process
from unmask.diffusion.schedule import Schedule

_MOST_STATES = 32
_NUM_DRAWS = 20_000


def check_schedule(schedule: Schedule) -> None:
    """Raise AssertionError unless a schedule keeps its contract.

    Alpha falls from at most 1 to at least 0, `alpha_prime` is its slope and `time_of` its inverse; shapes and dtypes
    are kept.
    """
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    alpha = schedule.alpha(t)
    assert ((alpha >= 0) & (alpha <= 1)).all(), f"{schedule}: alpha leaves [0, 1]"
    assert (alpha.diff() < 0).all(), f"{schedule}: alpha does not fall"
    inside, step = t[1:-1], 1e-6
    slope = (schedule.alpha(inside + step) - schedule.alpha(inside - step)) / (2 * step)
    _assert_close(
        schedule.alpha_prime(inside), slope, 1e-5, f"{schedule}: alpha_prime is not the slope of alpha"
    )
    _assert_close(schedule.time_of(alpha), t, 1e-6, f"{schedule}: time_of does not undo alpha")
    ends = schedule.time_of(torch.tensor([1.0, 0.0], dtype=torch.float64))
    _assert_close(ends, torch.tensor([0.0, 1.0]).double(), 1e-6, f"{schedule}: time_of(1), time_of(0)")
    for method in (schedule.alpha, schedule.alpha_prime, schedule.time_of):
        for example in (torch.tensor(0.5), torch.full((2, 3), 0.5), torch.full((2, 1), 0.5).double()):
            result = method(example)
            assert result.shape == example.shape, f"{schedule}: {method.__name__} changes the shape"
            assert result.dtype == example.dtype, f"{schedule}: {method.__name__} changes the dtype"


def check_process(process: Process) -> None:
    """Raise AssertionError unless a process of a small vocabulary keeps its contract.

    Laws compose (Chapman-Kolmogorov), draws follow them, `posterior`, `convert` and `cross_entropy` are what Bayes'
    rule makes of them, the integral of `nll` is the information that noise destroys, and gradients stay finite. All
    sums are written out over every clean token and every state.
    """
    if process.num_states > _MOST_STATES:
        raise ValueError(f"{process} has {process.num_states} states; the sums need at most {_MOST_STATES}")
    assert process.prediction in ("posterior", "leave_one_out"), (
        f"{process}: prediction={process.prediction!r}"
    )
    _check_kernels(process)
    _check_draws(process)
    _check_bayes(process)
    _check_bound(process)
    _check_gradients(process)


def _check_kernels(process: Process) -> None:
    clean, states = torch.arange(process.vocab_size), torch.arange(process.num_states)
    for s, u, t in ((0.0, 0.3, 1.0), (0.1, 0.2, 0.9), (0.5, 0.5, 0.6)):
        first, second, whole = (
            process.transition(states, _time(start), _time(end)) for start, end in ((s, u), (u, t), (s, t))
        )
        early, late = process.marginal(clean, _time(s)), process.marginal(clean, _time(t))
        for law in (first, whole, early):
            assert law.dtype == torch.float64, f"{process}: a law is {law.dtype}"
            assert (law >= 0).all(), f"{process}: a law is negative at {s}, {u}, {t}"
            _assert_close(law.sum(-1), torch.ones(len(law)).double(), 1e-9, f"{process}: a law's sum")
        _assert_close(first @ second, whole, 1e-9, f"{process}: kernels {s} -> {u} -> {t} do not compose")
        _assert_close(early @ whole, late, 1e-9, f"{process}: the kernel {s} -> {t} breaks the marginals")
        if s == u:
            _assert_close(first, torch.eye(len(states)).double(), 1e-9, f"{process}: no time, yet change")
    grid = process.marginal(clean.expand(3, -1), torch.tensor([[0.2], [0.4], [0.6]]))
    alone = torch.stack([process.marginal(clean, _time(t)) for t in (0.2, 0.4, 0.6)])
    _assert_close(grid, alone, 1e-6, f"{process}: times do not broadcast over tokens")


def _check_draws(process: Process) -> None:
    generator = torch.Generator().manual_seed(0)
    clean = torch.arange(process.vocab_size)
    x0 = clean.repeat_interleave(_NUM_DRAWS).reshape(len(clean), -1)
    kept = x0.clone()
    for t in (0.2, 0.7):
        law = process.marginal(clean, _time(t))
        share = F.one_hot(process.corrupt(x0, _time(t), generator), process.num_states).double().mean(1)
        spread = 6 * (law * (1 - law) / _NUM_DRAWS).sqrt() + 1e-4
        assert ((share - law).abs() <= spread).all(), f"{process}: corrupt does not draw from marginal at {t}"
    assert torch.equal(x0, kept), f"{process}: corrupt changes its input"
    start = F.one_hot(process.prior((_NUM_DRAWS,), generator), process.num_states).double() + 0.1 / _NUM_DRAWS
    end = process.marginal(clean, _time(1.0))
    divergence = (torch.special.xlogy(end, end) - end * start.mean(0).log()).sum(-1)
    _assert_close(process.prior_nll(clean), divergence, 0.02, f"{process}: prior_nll is not KL(q_1 || prior)")


def _check_bayes(process: Process) -> None:
    generator = torch.Generator().manual_seed(1)
    clean, states = torch.arange(process.vocab_size), torch.arange(process.num_states)
    shape = (process.num_states, process.vocab_size)
    others = (2 * torch.randn(shape, generator=generator, dtype=torch.float64)).log_softmax(-1)
    for s, t in ((0.0, 0.4), (0.3, 0.35), (0.6, 1.0)):
        early = process.marginal(clean, _time(s))
        kernel = process.transition(states, _time(s), _time(t))
        likelihood = (early @ kernel).T  # (S, K): state at t, clean token
        possible = likelihood.sum(-1) > 0
        joint = others.exp() * likelihood
        posterior = (joint / joint.sum(-1, keepdim=True))[possible]
        seen, leave_one_out = states[possible], others[possible]
        beliefs: dict[Prediction, Tensor] = {"posterior": posterior.log(), "leave_one_out": leave_one_out}

        reverse = (leave_one_out.exp() @ early) * kernel.T[possible]
        reverse = reverse / reverse.sum(-1, keepdim=True)
        found = process.posterior(beliefs[process.prediction], seen, _time(s), _time(t))
        _assert_close(found, reverse, 1e-6, f"{process}: posterior from {t} to {s} is not Bayes' rule")
        single = process.posterior(beliefs[process.prediction].float(), seen, _time(s), _time(t))
        assert single.dtype == torch.float32, f"{process}: posterior of float32 is {single.dtype}"

        turned = process.convert(
            leave_one_out, seen, _time(t), source="leave_one_out", target="posterior"
        ).exp()
        _assert_close(turned, posterior, 1e-6, f"{process}: convert to the posterior at {t}")
        back = process.convert(
            posterior.log(), seen, _time(t), source="posterior", target="leave_one_out"
        ).exp()
        whole = (likelihood[possible] > 1e-6).all(-1)  # elsewhere the posterior has forgotten something
        _assert_close(
            back[whole], leave_one_out[whole].exp(), 1e-6, f"{process}: convert from the posterior at {t}"
        )
        for source, belief in beliefs.items():
            for token in clean.tolist():
                x0 = torch.full_like(seen, token)
                nats = process.cross_entropy(belief, x0, seen, _time(t), source=source)
                can_be = likelihood[possible][:, token] > 0
                _assert_close(
                    (-nats[can_be]).exp(),
                    posterior[can_be, token],
                    1e-6,
                    f"{process}: cross_entropy from {source}",
                )


def _check_bound(process: Process) -> None:
    """With one token the leave-one-out law is the data law, and the bound's integral a mutual information."""
    generator = torch.Generator().manual_seed(2)
    data, wrong = torch.randn(2, process.vocab_size, generator=generator, dtype=torch.float64).softmax(-1)
    times, weights = _quadrature()
    t = times[:, None, None]
    x0 = torch.arange(process.vocab_size)[:, None].expand(len(times), -1, process.num_states)
    xt = torch.arange(process.num_states).expand_as(x0)
    chance = data[:, None] * process.marginal(x0[..., 0], t[..., 0])

    def integral(law: Tensor) -> float:
        prediction = law.log().expand(*x0.shape, -1)
        prediction = process.convert(
            prediction, xt, t, source="leave_one_out", target=process.prediction
        ).clamp_min(-700)
        nats = process.nll(prediction, x0, xt, t)
        assert nats.shape == x0.shape, f"{process}: nll gave {tuple(nats.shape)} for {tuple(x0.shape)}"
        nats = nats.where(chance > 0, 0)
        assert (nats >= -1e-9).all(), f"{process}: nll is negative"
        return float((weights[:, None, None] * chance * nats).sum())

    start, end = (_information(data, process.marginal(x0[0, :, 0], _time(t))) for t in (0.0, 1.0))
    found = integral(data)
    assert math.isclose(found, start - end, abs_tol=1e-4), (
        f"{process}: nll adds to {found}, not {start - end}"
    )
    assert integral(wrong) > found + 1e-3, f"{process}: nll does not punish a wrong prediction"


def _check_gradients(process: Process) -> None:
    generator = torch.Generator().manual_seed(3)
    x0 = torch.arange(process.vocab_size).repeat(8)
    for t in (1e-9, 1e-3, 0.5, 1 - 1e-6, 1.0):
        xt = process.corrupt(x0, _time(t), generator)
        for scale in (1.0, 40.0):
            logits = (scale * torch.randn(len(x0), process.vocab_size, generator=generator)).requires_grad_()
            nats = process.nll(logits.log_softmax(-1), x0, xt, _time(t))
            assert nats.dtype == torch.float32, f"{process}: nll of float32 is {nats.dtype}"
            assert nats.isfinite().all(), f"{process}: nll is not finite at time {t}"
            (slope,) = torch.autograd.grad(nats.sum(), logits)
            assert slope.isfinite().all(), f"{process}: the gradient of nll is not finite at time {t}"


def _quadrature() -> tuple[Tensor, Tensor]:
    """Return nodes and weights on (0, 1) that bear singular ends (tanh-sinh; Takahasi & Mori 1974)."""
    grid = torch.arange(-104, 61, dtype=torch.float64) / 20
    nodes = (math.pi * grid.sinh()).sigmoid()
    return nodes, math.pi * grid.cosh() * nodes * (1 - nodes) / 20


def _information(data: Tensor, law: Tensor) -> float:
    """Return I(x; z) for x ~ data (K,) and z ~ law (K, S)."""
    joint = data[:, None] * law
    return float((torch.special.xlogy(joint, law) - torch.special.xlogy(joint, joint.sum(0))).sum())


def _time(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def _assert_close(found: Tensor, wanted: Tensor, tolerance: float, message: str) -> None:
    error = (found.double() - wanted).abs() / wanted.abs().clamp_min(1)
    assert (error <= tolerance).all(), f"{message}: off by {float(error.max()):.3g}"

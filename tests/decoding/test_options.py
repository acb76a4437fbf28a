"""What is refused, and how it is said."""

import re

import pytest

from unmask.decoding.options import DEFAULT_BLOCK_LENGTH, Options
from unmask.decoding.rules import Threshold, TopK
from unmask.decoding.samplers import Ancestral
from unmask.errors import UsageError

REFUSED = [
    ({"mode": "autoregressive"}, "unknown mode 'autoregressive'"),
    ({"mode": "specualtive"}, "did you mean 'speculative'?"),
    ({"mode": "ar", "rule": TopK()}, "rule=TopK(k=1) is not supported in mode 'ar'"),
    ({"mode": "speculative", "rule": TopK()}, "rule=TopK(k=1) is not supported in mode 'speculative'"),
    ({"mode": "ar", "num_steps": 4}, "num_steps=4 is not supported in mode 'ar'"),
    ({"mode": "speculative", "num_steps": 4}, "num_steps=4 is not supported in mode 'speculative'"),
    ({"mode": "ar", "tree_size": 4}, "tree_size=4 is not supported in mode 'ar'"),
    ({"mode": "diffusion", "num_predrafts": 0}, "num_predrafts=0 is not supported in mode 'diffusion'"),
    ({"mode": "speculative", "tree_size": 0}, "tree_size=0 in mode 'speculative'"),
    ({"mode": "speculative", "num_predrafts": -1}, "num_predrafts=-1 in mode 'speculative'"),
    (
        {"mode": "speculative", "num_predrafts": 1, "block_length": 1},
        "num_predrafts=1 in mode 'speculative': a pre-draft says nothing of its first place",
    ),
    ({"mode": "ar", "block_length": 8}, "block_length=8 is not supported in mode 'ar'"),
    ({"mode": "diffusion", "block_length": 0}, "block_length=0 in mode 'diffusion'"),
    ({"mode": "diffusion", "num_steps": 0}, "num_steps=0 in mode 'diffusion'"),
    ({"mode": "diffusion", "rule": "threshold:0.9"}, "rule='threshold:0.9' in mode 'diffusion'"),
    ({"max_tokens": 0}, "max_tokens=0 in mode 'ar'"),
    ({"max_tokens": 2.5}, "max_tokens=2.5 in mode 'ar'"),
    ({"max_tokens": True}, "max_tokens=True in mode 'ar'"),
    ({"max_tokens": None}, "max_tokens=None in mode 'ar'"),
    ({"temperature": float("nan")}, "temperature=nan in mode 'ar'"),
    ({"temperature": float("inf")}, "temperature=inf in mode 'ar'"),
    ({"temperature": -0.1}, "temperature=-0.1 in mode 'ar'"),
    ({"temperature": "hot"}, "temperature='hot' in mode 'ar'"),
    ({"top_p": 0.0}, "top_p=0.0 in mode 'ar'"),
    ({"top_p": 1.5}, "top_p=1.5 in mode 'ar'"),
    ({"top_p": float("nan")}, "top_p=nan in mode 'ar'"),
    ({"top_k": -1}, "top_k=-1 in mode 'ar'"),
    ({"min_p": 1.5}, "min_p=1.5 in mode 'ar'"),
    ({"min_p": -0.1}, "min_p=-0.1 in mode 'ar'"),
    ({"logit_bias": ((1, 2.0), (1, 3.0))}, "logit_bias=((1, 2.0), (1, 3.0)) in mode 'ar'"),
    ({"logit_bias": ((-1, 2.0),)}, "logit_bias=((-1, 2.0),) in mode 'ar'"),
    ({"logit_bias": ((1, float("inf")),)}, "logit_bias=((1, inf),) in mode 'ar'"),
    ({"logit_bias": {1: 2.0}}, "logit_bias={1: 2.0} in mode 'ar'"),
    ({"presence_penalty": float("nan")}, "presence_penalty=nan in mode 'ar'"),
    ({"frequency_penalty": "1"}, "frequency_penalty='1' in mode 'ar'"),
    (
        {"mode": "diffusion", "sampler": Ancestral(), "presence_penalty": 1.0},
        "presence_penalty=1.0 in mode 'diffusion': a sampler cannot count",
    ),
    ({"num_logprobs": -1}, "num_logprobs=-1 in mode 'ar'"),
    ({"mode": "diffusion", "num_logprobs": 0}, "num_logprobs=0 is not supported in mode 'diffusion'"),
    ({"seed": "0"}, "seed='0' in mode 'ar'"),
    ({"seed": None}, "seed=None in mode 'ar'"),
    ({"stop": "\n"}, r"stop='\n' in mode 'ar'"),
    ({"stop": ("",)}, "stop=('',) in mode 'ar'"),
    ({"stop_token_ids": (-1,)}, "stop_token_ids=(-1,) in mode 'ar'"),
    ({"stop_token_ids": [1]}, "stop_token_ids=[1] in mode 'ar'"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED, ids=[str(options) for options, _ in REFUSED])
def test_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        Options(**options)  # type: ignore[arg-type]


def test_accepted() -> None:
    Options()
    Options(seed=-(2**70), temperature=1e-300, top_p=1e-9, top_k=10**9)
    Options("diffusion", block_length=1, rule=TopK(2), num_steps=99, stop=("a", "b"), stop_token_ids=())


def test_resolve_takes_the_models_values_where_none_were_given() -> None:
    resolved = Options("diffusion").resolve(block_length=16, stop_token_ids=(0,))
    assert (resolved.block_length, resolved.rule, resolved.stop_token_ids) == (16, Threshold(), (0,))
    assert (
        Options("speculative").resolve(block_length=None, stop_token_ids=()).block_length
        == DEFAULT_BLOCK_LENGTH
    )
    assert Options("ar").resolve(block_length=16, stop_token_ids=()).block_length is None


def test_resolve_keeps_what_was_given() -> None:
    given = Options("diffusion", block_length=2, rule=TopK(3), stop_token_ids=())
    assert given.resolve(block_length=16, stop_token_ids=(0,)) == given

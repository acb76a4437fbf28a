"""Likelihoods, tokens and texts over the API."""

import math

import httpx
import pytest
from served import Served

from unmask.decoding.language_model import LanguageModel
from unmask.decoding.options import Options
from unmask.evaluation.model_scorer import ModelScorer
from unmask.evaluation.scoring import LikelihoodRequest


def test_scores_are_those_of_the_evaluation(served: Served, model: LanguageModel) -> None:
    pairs = [LikelihoodRequest("abc", text) for text in ("d", " ef")]
    wanted = {"context": "abc", "continuations": ["d", " ef"]}
    exact = served.post("/v1/score", **wanted).json()
    truth = ModelScorer(model, Options()).loglikelihood(pairs)
    assert exact["kind"] == "exact"
    assert [each["log_likelihood"] for each in exact["data"]] == pytest.approx([one.nats for one in truth])
    assert all(each["standard_error"] is None for each in exact["data"])
    bound = served.post("/v1/score", **wanted, mode="diffusion", num_samples=16).json()
    assert bound["kind"] == "bound"
    for each, one in zip(bound["data"], truth, strict=True):
        assert each["num_tokens"] == one.num_tokens
        assert math.isfinite(each["log_likelihood"])
        assert each["standard_error"] is not None


def test_what_cannot_be_scored_is_refused(served: Served) -> None:
    refused = served.post("/v1/score", continuations=["a"], num_samples=4)
    assert refused.json()["error"]["param"] == "num_samples"
    long = served.post("/v1/score", context="a" * 20_000, continuations=["b"])
    assert long.json()["error"]["code"] == "context_length_exceeded"


def test_texts_and_tokens_go_both_ways(served: Served, model: LanguageModel) -> None:
    tokens = served.post("/tokenize", prompt="žluť").json()
    assert tokens["count"] == len(tokens["tokens"]) == 6
    assert served.post("/detokenize", tokens=tokens["tokens"]).json() == {"prompt": "žluť"}
    messages = [{"role": "user", "content": "a"}]
    assert served.post("/tokenize", messages=messages).json()["tokens"] == model.encode(messages)
    assert httpx.get(f"{served.url}/v1/models/tiny").json()["modes"] == [
        "ar",
        "diffusion",
        "speculative",
        "auto",
    ]

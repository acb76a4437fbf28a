"""How probable continuations are: the route /v1/score."""

from unmask.decoding.language_model import LanguageModel
from unmask.decoding.mode import Mode
from unmask.decoding.options import Options
from unmask.evaluation.autoregressive import Autoregressive
from unmask.evaluation.canvas_likelihood import Bound
from unmask.evaluation.model_scorer import ModelScorer
from unmask.evaluation.scoring import LikelihoodRequest, LogLikelihood
from unmask.serving.answers import Score, Scores
from unmask.serving.backend import Backend
from unmask.serving.errors import ServingError
from unmask.serving.fields import refuse_by_mode
from unmask.serving.protocol import ScoreRequest


async def score(
    request: ScoreRequest, model: LanguageModel, service: Backend, *, name: str, default_mode: Mode
) -> Scores:
    """Return the log-likelihoods that a request asks for.

    Exact ones take one forward for all; bounds are estimated one after the other, so that answers go on in between.
    """
    mode: Mode = request.mode or ("diffusion" if default_mode == "diffusion" else "ar")
    refuse_by_mode(request, mode)
    is_bound = mode == "diffusion"
    kind = Bound(request.num_samples or Bound.num_samples) if is_bound else Autoregressive()
    options = Options(mode=mode, block_length=request.block_length, seed=request.seed or 0)
    scorer = ModelScorer(model, options, kind)
    pairs = [LikelihoodRequest(request.context, continuation) for continuation in request.continuations]
    answers: list[LogLikelihood] = []
    for batch in [[pair] for pair in pairs] if is_bound else [pairs]:
        answers += await service.run(lambda batch=batch: scorer.loglikelihood(batch))  # type: ignore[misc]
    if any(answer.num_dropped for answer in answers):
        raise ServingError(
            400,
            "context and continuation are longer than the model's context",
            param="context",
            code="context_length_exceeded",
        )
    return Scores(
        model=name,
        kind="bound" if is_bound else "exact",
        data=[
            Score(
                index=index,
                log_likelihood=answer.nats,
                standard_error=answer.standard_error,
                is_greedy=answer.is_greedy,
                num_tokens=answer.num_tokens,
            )
            for index, answer in enumerate(answers)
        ],
    )

"""Our models in lm-evaluation-harness.

    import lm_eval
    from unmask.evaluation.harness import harness_model

    lm_eval.simple_evaluate(model=harness_model(ModelScorer(model, Options(mode="ar"))), tasks=["piqa"])

The harness is imported when it is wanted, and is no dependency.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from rich.console import Console
from rich.progress import track

from unmask.errors import UsageError
from unmask.evaluation.scoring import GenerationRequest, LikelihoodRequest, Scorer

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import LM

DEFAULT_MAX_TOKENS = 256
"""What the harness writes at most for a task that does not say."""

_REQUESTS_AT_ONCE = 128
_TAKEN = ("until", "max_gen_toks", "do_sample", "temperature")

T = TypeVar("T")


def harness_model(scorer: Scorer) -> "LM":
    """Return a scorer as the harness's model class has it.

    How text is drawn is the scorer's own matter: a task that wants sampling, or any other argument of generation than
    a length and stops, is refused. Where a likelihood does not tell whether a continuation is the greedy one, the
    harness is told that it is not. Raises UsageError where the harness is not installed.
    """
    try:
        from lm_eval.api.model import LM
    except ImportError as error:
        raise UsageError("the package lm-eval is not installed", "pip install 'unmask[harness]'") from error

    class HarnessModel(LM):  # type: ignore[misc]
        def loglikelihood(self, requests: "list[Instance]") -> list[tuple[float, bool]]:
            asked = [LikelihoodRequest(*request.args) for request in requests]
            return [
                (answer.nats, bool(answer.is_greedy))
                for batch in _batches(asked)
                for answer in scorer.loglikelihood(batch)
            ]

        def loglikelihood_rolling(self, requests: "list[Instance]") -> list[float]:
            texts = [request.args[0] for request in requests]
            return [
                answer.nats for batch in _batches(texts) for answer in scorer.loglikelihood_rolling(batch)
            ]

        def generate_until(self, requests: "list[Instance]") -> list[str]:
            asked = [generation_request(*request.args) for request in requests]
            return [answer.text for batch in _batches(asked) for answer in scorer.generate_until(batch)]

    return HarnessModel()


def _batches(requests: Sequence[T]) -> Iterator[Sequence[T]]:
    """Yield requests some at a time, with a bar on a terminal."""
    console = Console(stderr=True)
    starts = range(0, len(requests), _REQUESTS_AT_ONCE)
    for start in track(starts, "asking the model", console=console, disable=not console.is_terminal):
        yield requests[start : start + _REQUESTS_AT_ONCE]


def generation_request(context: str, arguments: Mapping[str, Any]) -> GenerationRequest:
    """Return what a task of the harness asks for; raise UsageError for an argument that cannot be honoured."""
    strange = [name for name in arguments if name not in _TAKEN]
    if strange:
        raise UsageError(
            f"generation argument {strange[0]!r} is not supported", f"the harness may set {', '.join(_TAKEN)}"
        )
    if arguments.get("do_sample") or arguments.get("temperature"):
        raise UsageError(
            "the task wants sampled text", "set do_sample=False, and the temperature in the scorer's options"
        )
    until = arguments.get("until") or ()
    stops = (until,) if isinstance(until, str) else tuple(until)
    return GenerationRequest(context, stops, int(arguments.get("max_gen_toks", DEFAULT_MAX_TOKENS)))

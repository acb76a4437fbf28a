"""Many prompts at hand decoded in one engine, each yielded when it is done."""

from collections.abc import Iterator, Sequence

from unmask.decoding.generate import generate
from unmask.decoding.generation import Generation
from unmask.decoding.language_model import LanguageModel
from unmask.decoding.options import Options
from unmask.engine.engine import DEFAULT_MAX_REQUESTS, DEFAULT_PAGE_SIZE, Engine, Failed, Finished
from unmask.errors import UsageError

Asked = tuple[Sequence[int], Options]


def side_by_side(
    model: LanguageModel, asked: Sequence[Asked], *, engine: Engine | None = None
) -> Iterator[tuple[int, Generation]]:
    """Yield the number and the generation of each prompt, in any order; what an engine refuses runs alone.

    `engine`: one of this model that has nothing to do and may still hold the beginnings of prompts; unless given, one
    with pages enough for all that run at once. Raise what the engine or the reference loop raises of a request.
    """
    alone: Sequence[int] = range(len(asked))
    if not model.denoiser.full_attention:
        engine = engine or _engine_for(model, asked)
        refused = []
        numbers: dict[int, int] = {}
        for number, (prompt, options) in enumerate(asked):
            try:
                numbers[engine.add(prompt, options)] = number
            except UsageError:  # which the reference loop raises again where it is the request's own fault
                refused.append(number)
        try:
            while engine.has_work:
                for event in engine.step():
                    if isinstance(event, Failed):
                        del numbers[event.request_id]
                        raise event.error
                    if isinstance(event, Finished):
                        yield numbers.pop(event.request_id), event.generation
        finally:
            for request_id in numbers:
                engine.abort(request_id)
        alone = refused
    for number in alone:
        yield number, generate(model.denoiser, model.tokenizer, *asked[number])


def _engine_for(model: LanguageModel, asked: Sequence[Asked]) -> Engine:
    longest = max((len(prompt) + options.max_tokens for prompt, options in asked), default=1)
    num_pages = DEFAULT_MAX_REQUESTS * (longest // DEFAULT_PAGE_SIZE + 2)
    return Engine(model.denoiser, model.tokenizer, num_pages=num_pages)

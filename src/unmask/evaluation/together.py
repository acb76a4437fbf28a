"""Many prompts decoded side by side, by whatever can: evaluations say what they need, their callers have it."""

from collections.abc import Callable, Iterator, Sequence

from unmask.decoding.generate import generate
from unmask.decoding.generation import Generation
from unmask.decoding.language_model import LanguageModel
from unmask.decoding.options import Options

Asked = tuple[Sequence[int], Options]
"""Prompt tokens with their options."""

Together = Callable[[LanguageModel, Sequence[Asked]], Iterator[tuple[int, Generation]]]
"""Decodes prompts and yields each one's number and generation as soon as it is done, in any order.

Each is to give what it would give alone, but for the seconds.
"""


def in_turn(model: LanguageModel, asked: Sequence[Asked]) -> Iterator[tuple[int, Generation]]:
    """Decode one after the other by the reference loop."""
    for number, (prompt, options) in enumerate(asked):
        yield number, generate(model.denoiser, model.tokenizer, prompt, options)


def in_order(model: LanguageModel, asked: Sequence[Asked], together: Together) -> list[Generation]:
    """Decode all and return the generations in the order of the prompts."""
    done = dict(together(model, asked))
    return [done[number] for number in range(len(asked))]

"""The prompts on which a conversion is judged: written for it, and never trained on."""

import hashlib
import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from unmask.decoding.language_model import LanguageModel
from unmask.errors import UsageError


@dataclass(frozen=True)
class Prompt:
    """What somebody might ask a model; `number` is its line in the file, counted from 0."""

    number: int
    kind: str
    text: str


@cache
def all_prompts() -> tuple[Prompt, ...]:
    """Return every prompt, kind after kind."""
    lines = (files("unmask.evaluation") / "prompts.jsonl").read_text(encoding="utf-8").splitlines()
    return tuple(Prompt(number, **json.loads(line)) for number, line in enumerate(lines))


def kinds() -> tuple[str, ...]:
    """Return the kinds of prompt, in their order."""
    return tuple(dict.fromkeys(prompt.kind for prompt in all_prompts()))


def first_prompts(count: int) -> tuple[Prompt, ...]:
    """Return the first `count` prompts of each kind, the kinds taking turns.

    So whatever is done of it, all kinds are done. Raise UsageError where there are not so many.
    """
    by_kind = [[prompt for prompt in all_prompts() if prompt.kind == kind] for kind in kinds()]
    most = min(map(len, by_kind))
    if not 1 <= count <= most:
        raise UsageError(f"{count} prompts of each kind: there are 1 to {most}")
    return tuple(prompts[place] for place in range(count) for prompts in by_kind)


def prompts_digest(model: LanguageModel) -> str:
    """Return the SHA-256 of all prompts as a model reads them: texts, chat template and tokenizer decide it."""
    tokens = [model.encode(prompt.text) for prompt in all_prompts()]
    return hashlib.sha256(json.dumps(tokens).encode()).hexdigest()

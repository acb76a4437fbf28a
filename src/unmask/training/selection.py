"""Which of the texts that a model wrote are worth training on."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from unmask.errors import FailureError, UsageError

Fault = Literal["short", "repetitive", "language", "duplicate", "near-duplicate"]
"""Why a text is dropped."""

_GRAM_WORDS = 5
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+")
"""A word; in scripts that do not part words, a single character."""


@dataclass(frozen=True)
class SelectionConfig:
    """What a text must be like; raises UsageError for values out of range.

    `min_words`: fewer are too short. `max_repetition`: of all runs of five words, the share that the text has had
    already. `max_overlap`: the share of its different runs that texts kept before it have, 1 to drop only copies.
    `languages`: codes such as "en"; none to keep all.
    """

    min_words: int = 20
    max_repetition: float = 0.3
    max_overlap: float = 0.5
    languages: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.min_words < 1:
            raise UsageError(f"min_words={self.min_words} must be at least 1")
        for name, share in (("max_repetition", self.max_repetition), ("max_overlap", self.max_overlap)):
            if not 0 <= share <= 1:
                raise UsageError(f"{name}={share} must lie in [0, 1]")


class Identifier(Protocol):
    """Tells the language of a text."""

    def __call__(self, text: str) -> str: ...


class Selection:
    """Takes texts one after the other, and remembers the runs of words of those it kept."""

    def __init__(self, config: SelectionConfig) -> None:
        self.config = config
        self._identify = _identifier(config.languages) if config.languages else None
        self._texts: set[int] = set()
        self._grams: set[int] = set()

    def fault(self, text: str) -> Fault | None:
        """Say why a text should be dropped, or None for one to keep; what is asked for first is cheapest."""
        words = _words(text)
        if len(words) < self.config.min_words:
            return "short"
        grams = list(_grams(words))
        if 1 - len(set(grams)) / len(grams) > self.config.max_repetition:
            return "repetitive"
        if hash(words) in self._texts:
            return "duplicate"
        if len(self._grams.intersection(grams)) / len(set(grams)) > self.config.max_overlap:
            return "near-duplicate"
        if self._identify is not None and self._identify(text) not in self.config.languages:
            return "language"
        return None

    def keep(self, text: str) -> None:
        """Remember a text, so that later ones like it are dropped."""
        words = _words(text)
        self._texts.add(hash(words))
        self._grams.update(_grams(words))

    def sift(self, texts: Sequence[str | None]) -> tuple[list[int], Counter[str]]:
        """Keep what has no fault: return the indices, and how many were dropped for which fault.

        None stands for what is no text at all, and is dropped as "malformed".
        """
        kept, dropped = [], Counter[str]()
        for index, text in enumerate(texts):
            fault = "malformed" if text is None else self.fault(text)
            if fault is not None:
                dropped[fault] += 1
            elif text is not None:
                self.keep(text)
                kept.append(index)
        return kept, dropped


def _words(text: str) -> tuple[str, ...]:
    return tuple(_WORD.findall(text.casefold()))


def _grams(words: tuple[str, ...]) -> Iterator[int]:
    """Yield the hash of every run of words; of a shorter text the whole is one."""
    for begin in range(max(1, len(words) - _GRAM_WORDS + 1)):
        yield hash(words[begin : begin + _GRAM_WORDS])


def _identifier(languages: Sequence[str]) -> Identifier:
    """Return a naive Bayes classifier of 139 languages (Lui and Baldwin 2012); raise for codes it does not know."""
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError as error:
        raise FailureError("telling languages needs py3langid", "pip install 'unmask[train]'") from error
    identifier = LanguageIdentifier.from_model_file(MODEL_FILE)
    unknown = [language for language in languages if language not in identifier.labels]
    if unknown:
        raise UsageError(
            f"unknown language {unknown[0]!r}", f"choose from {', '.join(sorted(identifier.labels))}"
        )
    return lambda text: str(identifier.classify(text)[0])

"""Constraints on a whole text: a JSON schema, a regular expression or a grammar, and which tokens it admits next."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Literal, Protocol, get_args

import tokenizers
import torch
from torch import Tensor

from unmask.errors import FailureError, UsageError
from unmask.registry import unknown_name
from unmask.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

ConstraintKind = Literal["json_object", "json_schema", "regex", "grammar"]

NO_TOKEN = "the constraint admits no token here that the model can write"


@dataclass(frozen=True)
class Constraint:
    """What a text has to be, from its first token to its stop token.

    `json_object`: any JSON object, without a `text`. `json_schema`: what the schema in the text describes. `regex`: a
    match of the whole text, in the syntax of Rust's crate regex. `grammar`: context-free, in the syntax of Lark as
    llguidance reads it. The extra ``grammar`` compiles them.
    """

    kind: ConstraintKind
    text: str = ""

    def __post_init__(self) -> None:
        if self.kind not in get_args(ConstraintKind):
            raise unknown_name("constraint", str(self.kind), get_args(ConstraintKind))
        if (self.kind == "json_object") == bool(self.text):
            wanted = "has no text" if self.kind == "json_object" else "needs a text"
            raise UsageError(f"constraint {self.kind!r} {wanted}, {self.text!r} was given")

    def matcher(self, tokenizer: Tokenizer, stop_token_ids: Sequence[int]) -> "GrammarMatcher":
        """Compile the constraint for a tokenizer; UsageError if it cannot be, or llguidance is missing."""
        try:
            from llguidance import LLMatcher
        except ImportError as error:
            raise UsageError(
                f"constraint {self.kind!r} needs the package llguidance", "pip install 'unmask[grammar]'"
            ) from error
        vocabulary = _vocabulary(tokenizer.backend)
        match self.kind:
            case "json_object":
                source = _json_grammar({"type": "object"})
            case "json_schema":
                source = _json_grammar(self._schema())
            case "regex":
                source = LLMatcher.grammar_from_regex(self.text)
            case "grammar":
                source = LLMatcher.grammar_from_lark(self.text)
        is_wrong, messages = LLMatcher.validate_grammar_with_warnings(source, vocabulary)
        if is_wrong or messages:  # a warning is about a part of a schema that would be ignored
            raise UsageError(f"constraint {self.kind!r}: {'; '.join(messages)}")
        return GrammarMatcher(LLMatcher(vocabulary, source), vocabulary.eos_tokens, stop_token_ids)

    def _schema(self) -> dict[str, object]:
        try:
            schema = json.loads(self.text)
        except ValueError as error:
            raise UsageError(f"constraint 'json_schema' is not JSON: {error}") from error
        if not isinstance(schema, dict):
            raise UsageError("constraint 'json_schema' must be a JSON object", "wrap it, say in anyOf")
        return schema


class Matcher(Protocol):
    """Where in a constraint a growing text stands."""

    def admitted(self, num_tokens: int) -> Tensor:
        """Return which of the first `num_tokens` tokens may come next: (num_tokens,) bool."""
        ...

    def consume(self, token: int) -> None:
        """Go on by an admitted token that does not stop the text."""
        ...

    def fork(self) -> "Matcher":
        """Return a matcher that stands at the same place and goes its own way."""
        ...


class GrammarMatcher:
    """A matcher by llguidance. Stop tokens are admitted where the text may end, and only there.

    `ends`: what llguidance itself takes for the end. Raises FailureError where it gives up, say at characters that the
    vocabulary cannot spell.
    """

    def __init__(self, matcher: "LLMatcher", ends: Sequence[int], stop_token_ids: Sequence[int]) -> None:
        self._matcher, self._ends, self._stops = matcher, list(ends), list(stop_token_ids)

    def admitted(self, num_tokens: int) -> Tensor:
        """Return which of the first `num_tokens` tokens may come next: (num_tokens,) bool."""
        known = torch.frombuffer(bytearray(self._matcher.compute_logit_bias()), dtype=torch.uint8)[
            :num_tokens
        ]
        self._check()
        only = known.nonzero()[:, 0].tolist() if int(known.count_nonzero()) == 1 else []
        if (
            only and only[0] not in self._ends and not self._matcher.validate_tokens(only)
        ):  # forced bytes that no token spells
            raise FailureError(NO_TOKEN, "does it ask for characters that the vocabulary lacks?")
        admitted = torch.zeros(num_tokens, dtype=torch.bool)
        admitted[: len(known)] = known > 0
        admitted[[token for token in self._ends if token < num_tokens]] = False
        admitted[self._stops] = self._matcher.is_accepting()
        return admitted

    def consume(self, token: int) -> None:
        """Go on by an admitted token that does not stop the text."""
        self._matcher.consume_token(token)
        self._check()

    def fork(self) -> "GrammarMatcher":
        """Return a matcher that stands at the same place and goes its own way."""
        return GrammarMatcher(self._matcher.deep_copy(), self._ends, self._stops)

    def _check(self) -> None:
        if self._matcher.is_error():
            raise FailureError(f"the constraint cannot go on: {self._matcher.get_error().splitlines()[0]}")


def _json_grammar(schema: dict[str, object]) -> str:
    """Return the grammar of a schema's JSON as `json.dumps` spells it.

    Free white space would let a small model write line feeds for ever.
    """
    from llguidance import LLMatcher

    return LLMatcher.grammar_from_json_schema(
        schema, overrides={"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
    )


@lru_cache(maxsize=4)
def _vocabulary(backend: tokenizers.Tokenizer) -> "LLTokenizer":
    """Return a vocabulary prepared for grammars, which takes about a second for fifty thousand tokens."""
    from llguidance import LLTokenizer

    return LLTokenizer(backend.to_str())

"""Text to tokens and back, bare or as a conversation."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import pre_tokenizers

from unmask.chat_template import PRIVATE_USE, Disguise, Message, check_messages, render_template, template_in
from unmask.errors import CheckpointError, UsageError

TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
TEMPLATE_FILE = "chat_template.jinja"


@dataclass(frozen=True)
class Tokenizer:
    """A `tokenizers.Tokenizer` with the names of its special tokens and its chat template.

    Special tokens are the control tokens (``special: true`` in tokenizer.json). Their text is ordinary text
    unless the caller says otherwise, so a prompt that mentions one can neither end a turn nor start another.
    `names` maps roles such as ``bos_token`` to token text; `prefix_ids` are what a bare prompt starts with.
    """

    backend: tokenizers.Tokenizer = field(repr=False)
    names: Mapping[str, str]
    chat_template: str | None = field(default=None, repr=False)
    prefix_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        # tokenizer.json may carry the truncation and padding of a training run, which would cut prompts silently.
        self.backend.no_truncation()
        self.backend.no_padding()
        self.backend.encode_special_tokens = True  # "encode their text": see `encode`

    @classmethod
    def from_folder(cls, folder: Path) -> "Tokenizer":
        """Read tokenizer.json and what lies beside it in the hub's layout; CheckpointError for a broken file."""
        path = folder / TOKENIZER_FILE
        if not path.is_file():
            raise CheckpointError(f"{folder} has no {TOKENIZER_FILE}", "convert its tokenizer to a fast one")
        try:
            backend = tokenizers.Tokenizer.from_str(path.read_text(encoding="utf-8"))
        except Exception as error:  # the Rust side raises nothing narrower
            raise CheckpointError(f"{path} cannot be read as a tokenizer: {error}") from error
        settings = {**_read_json(folder / "special_tokens_map.json"), **_read_json(folder / CONFIG_FILE)}
        texts = {key: _token_text(value) for key, value in settings.items() if key.endswith("_token")}
        names = {key: text for key, text in texts.items() if text}
        file = folder / TEMPLATE_FILE
        template = file.read_text(encoding="utf-8") if file.is_file() else template_in(settings)
        return cls(backend, names, template, _prefix(backend, names, settings.get("add_bos_token")))

    def save(self, folder: Path) -> None:
        """Write the files that `from_folder` reads."""
        settings = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            "add_bos_token": bool(self.prefix_ids),
            **self.names,
        }
        described = json.dumps(settings, indent=2, ensure_ascii=False) + "\n"
        (folder / TOKENIZER_FILE).write_text(self.backend.to_str(), encoding="utf-8")
        (folder / CONFIG_FILE).write_text(described, encoding="utf-8")
        if self.chat_template is not None:
            (folder / TEMPLATE_FILE).write_text(self.chat_template, encoding="utf-8")

    @cached_property
    def vocab_size(self) -> int:
        """Number of token ids, added tokens included; a model's embeddings may have more rows."""
        return self.backend.get_vocab_size()

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """The ids of the control tokens."""
        return frozenset(self._specials.values())

    @property
    def bos_id(self) -> int | None:
        """The id that begins a text, where the model has one."""
        return self._named_id("bos_token")

    @property
    def eos_id(self) -> int | None:
        """The id that ends a text or turn, where the model has one."""
        return self._named_id("eos_token")

    @property
    def beginning(self) -> list[int]:
        """What stands for an empty context: what a bare prompt starts with, or else what begins or ends a text.

        UsageError for a model that has no such token.
        """
        if self.prefix_ids:
            return list(self.prefix_ids)
        for token in (self.bos_id, self.eos_id):
            if token is not None:
                return [token]
        raise UsageError(
            "this model has no token to begin a text with", "give a context, or name one in its tokenizer"
        )

    @cached_property
    def digest(self) -> str:
        """A hash of all that decides which ids a text has."""
        return hashlib.sha256(self.backend.to_str().encode()).hexdigest()[:16]

    def token_id(self, text: str) -> int | None:
        """Return the id of the token spelled exactly `text`, special or not."""
        return self.backend.token_to_id(text)

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        """Return the ids of `text` alone; special-token text in it is plain text unless `allow_special`."""
        return self._encode_pieces(self._split(text) if allow_special else [text])

    def encode_with_starts(self, text: str) -> tuple[list[int], list[int]]:
        """Return the ids of `text` as `encode` does, and which of its characters each begins with or within."""
        found = self.backend.encode(text, add_special_tokens=False)
        return found.ids, [begin for begin, _ in found.offsets]

    def encode_prompt(self, text: str) -> list[int]:
        """Return the ids of a bare prompt: what the model expects before any text (say BOS), then `text`."""
        return [*self.prefix_ids, *self.encode(text)]

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """Return the text of `ids`; ids beyond the vocabulary have none."""
        return self.backend.decode(list(ids), skip_special_tokens=skip_special)

    def render_chat(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> list[int]:
        """Return the ids of a conversation in the model's template; a message has a ``role`` and a ``content``.

        Special tokens that the template writes are special; the same text inside a message is plain text.
        Raise UsageError for a conversation the template cannot take.
        """
        if self.chat_template is None:
            raise UsageError("this model has no chat template", "give a bare prompt instead of messages")
        check_messages(messages)
        disguise = Disguise(tuple(self._specials), messages)
        hidden = [{key: disguise.put_on(text) for key, text in message.items()} for message in messages]
        values = {"messages": hidden, "add_generation_prompt": add_generation_prompt, **self.names}
        pieces = self._split(render_template(self.chat_template, values))
        shown = [disguise.take_off(piece) if isinstance(piece, str) else piece for piece in pieces]
        return self._encode_pieces(shown)

    def render_answers(self, messages: Sequence[Message]) -> tuple[list[int], list[bool]]:
        """Return the ids of a whole conversation, and which of them the assistant has to write.

        Those are its words, up to the last special token that the template puts after them. They are tokenised by
        themselves, as they come about after a prompt. Raise UsageError for a conversation the template cannot take, or
        whose earlier turns it writes in another way once later ones follow.
        """
        if self.chat_template is None:
            raise UsageError("this model has no chat template", "give texts instead of messages")
        check_messages(messages)
        disguise = Disguise(tuple(self._specials), messages)
        hidden = [{key: disguise.put_on(text) for key, text in message.items()} for message in messages]

        def rendered(count: int, *, asks: bool) -> str:
            assert self.chat_template is not None
            values = {"messages": hidden[:count], "add_generation_prompt": asks, **self.names}
            return render_template(self.chat_template, values)

        whole, end = rendered(len(messages), asks=False), 0
        stretches: list[tuple[str, bool]] = []
        for number, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            opening, closing = rendered(number, asks=True), rendered(number + 1, asks=False)
            if not (closing.startswith(opening) and whole.startswith(closing)):
                raise UsageError(
                    "the chat template writes an answer in another way once other turns follow",
                    "give each answer as a conversation of its own, or other messages",
                )
            stretches += [(whole[end : len(opening)], False), (closing[len(opening) :], True)]
            end = len(closing)
        ids: list[int] = []
        answered: list[bool] = []
        for text, is_answer in (*stretches, (whole[end:], False)):
            pieces = self._split(text)
            last = max((place for place, piece in enumerate(pieces) if isinstance(piece, int)), default=None)
            for place, piece in enumerate(pieces):
                shown = disguise.take_off(piece) if isinstance(piece, str) else piece
                new = self._encode_piece(shown, is_first=not ids)
                ids += new
                answered += [is_answer and (last is None or place <= last)] * len(new)
        return ids, answered

    def chat_head(self) -> list[int]:
        """Return the ids that come before the words of a conversation's first user message.

        Given these alone, an instruct model invents the user's turn and then answers it. Without a chat template
        they are what a bare prompt starts with.
        """
        if self.chat_template is None:
            return list(self.prefix_ids)
        words = chr(PRIVATE_USE[-1])
        messages = [{"role": "user", "content": words}]
        values = {"messages": messages, "add_generation_prompt": False, **self.names}
        head, found, _ = render_template(self.chat_template, values).partition(words)
        if not found:
            raise CheckpointError(
                "the chat template leaves out the user's words", "set another chat template"
            )
        return self._encode_pieces(self._split(head))

    def _named_id(self, name: str) -> int | None:
        return self.backend.token_to_id(self.names[name]) if name in self.names else None

    @cached_property
    def _specials(self) -> dict[str, int]:
        added = self.backend.get_added_tokens_decoder()
        return {token.content: id for id, token in added.items() if token.special and token.content}

    @cached_property
    def _special_pattern(self) -> re.Pattern[str]:
        """Match any special token's text, longest first, as group 1."""
        tokens = [token for token in self.backend.get_added_tokens_decoder().values() if token.special]
        tokens.sort(key=lambda token: len(token.content), reverse=True)
        return re.compile("|".join(_token_pattern(token) for token in tokens if token.content) or "(?!)")

    def _split(self, text: str) -> list[str | int]:
        """Cut text into stretches of plain text and the ids of the special tokens between them."""
        pieces: list[str | int] = []
        end = 0
        for match in self._special_pattern.finditer(text):
            pieces += [text[end : match.start()], self._specials[match[match.lastindex or 0]]]
            end = match.end()
        return [piece for piece in (*pieces, text[end:]) if piece != ""]

    def _encode_pieces(self, pieces: Sequence[str | int]) -> list[int]:
        ids: list[int] = []
        for index, piece in enumerate(pieces):
            ids += self._encode_piece(piece, is_first=not index)
        return ids

    def _encode_piece(self, piece: str | int, *, is_first: bool) -> list[int]:
        if isinstance(piece, int):
            return [piece]
        backend = self.backend if is_first else self._continuation
        ids: list[int] = backend.encode(piece, add_special_tokens=False).ids
        return ids

    @cached_property
    def _continuation(self) -> tokenizers.Tokenizer:
        """The backend for text that does not begin the sequence.

        SentencePiece-like tokenizers put a space before the first word only (``prepend_scheme: first``).
        """
        metaspace = self.backend.pre_tokenizer
        if not isinstance(metaspace, pre_tokenizers.Metaspace) or metaspace.prepend_scheme != "first":
            return self.backend
        backend = tokenizers.Tokenizer.from_str(self.backend.to_str())
        backend.encode_special_tokens = True
        backend.pre_tokenizer = pre_tokenizers.Metaspace(
            replacement=metaspace.replacement, prepend_scheme="never", split=metaspace.split
        )
        return backend


def _prefix(backend: tokenizers.Tokenizer, names: Mapping[str, str], add_bos: object) -> tuple[int, ...]:
    """Return what goes before a bare prompt: BOS if tokenizer_config.json says so, else as the post-processor."""
    if isinstance(add_bos, bool):
        bos = backend.token_to_id(names["bos_token"]) if add_bos and "bos_token" in names else None
        return () if bos is None else (bos,)
    # Only what it puts before a text: a post-processor may also append EOS, which would end a prompt at once.
    bare, dressed = (backend.encode("a", add_special_tokens=add).ids for add in (False, True))
    starts = [start for start in range(len(dressed)) if dressed[start : start + len(bare)] == bare]
    return tuple(dressed[: starts[0]]) if starts else ()


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} must hold a JSON object")
    return content


def _token_text(value: object) -> str | None:
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) else None


def _token_pattern(token: tokenizers.AddedToken) -> str:
    """Return the expression that finds one token, with the white space around it that it may swallow."""
    before, after = r"\s*" if token.lstrip else "", r"\s*" if token.rstrip else ""
    if token.single_word:
        before, after = before + r"(?<!\w)", r"(?!\w)" + after
    return f"{before}({re.escape(token.content)}){after}"

"""The tokenizer inside a GGUF file: byte-level BPE, built from its vocabulary, merges and pre-tokenizer name."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from unmask import tokenizer
from unmask.errors import CheckpointError

_CONTROL, _USER_DEFINED = 3, 4  # llama.cpp's token types

_LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2_SPLIT = _LLAMA3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")
_TEKKEN_SPLIT = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class _PreTokenizer:
    """How text is cut before merging: single digits and GPT-2's expression, or an expression of its own.

    `ignore_merges`: a piece that is a token stays whole. `add_bos`: a bare prompt begins with BOS unless the file
    says otherwise. `compose`: Unicode text is brought to its composed form (NFC) first.
    """

    split: str | None = None
    single_digits: bool = False
    ignore_merges: bool = False
    add_bos: bool = False
    compose: bool = False


_LLAMA3 = _PreTokenizer(_LLAMA3_SPLIT, ignore_merges=True, add_bos=True)
_PRE_TOKENIZERS: Mapping[str, _PreTokenizer] = {
    "default": _PreTokenizer(),
    "gpt-2": _PreTokenizer(),
    "smollm": _PreTokenizer(single_digits=True),
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "qwen2": _PreTokenizer(_QWEN2_SPLIT, compose=True),
    "deepseek-r1-qwen": _PreTokenizer(_QWEN2_SPLIT, compose=True),
    "tekken": _PreTokenizer(_TEKKEN_SPLIT, ignore_merges=True, add_bos=True),
}
"""llama.cpp's names -> what the models' own tokenizer.json does."""


def read_tokenizer(metadata: Mapping[str, Any], *, origin: str) -> tokenizer.Tokenizer:
    """Build the tokenizer from a GGUF file's metadata; raise CheckpointError, naming `origin`, for other kinds."""
    kind, pre = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre", "default")
    remedy = "load the model from a folder in the hub's layout instead"
    if kind != "gpt2":
        raise CheckpointError(f"{origin}: tokenizer.ggml.model {kind!r} is not supported", remedy)
    if pre not in _PRE_TOKENIZERS:
        raise CheckpointError(f"{origin}: tokenizer.ggml.pre {pre!r} is not supported", remedy)
    try:
        tokens: list[str] = metadata["tokenizer.ggml.tokens"]
        merges = [_pair(merge) for merge in metadata["tokenizer.ggml.merges"]]
        rules = _PRE_TOKENIZERS[pre]
        vocabulary = {token: index for index, token in enumerate(tokens)}
        model = models.BPE(vocab=vocabulary, merges=merges, ignore_merges=rules.ignore_merges)
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{origin}: broken tokenizer: {error}") from error
    backend = _backend(model, rules)
    types = metadata.get("tokenizer.ggml.token_type", [])
    for kind_of, special in ((_CONTROL, True), (_USER_DEFINED, False)):
        chosen = [token for token, token_type in zip(tokens, types, strict=False) if token_type == kind_of]
        added = [AddedToken(token, normalized=False, special=special) for token in chosen]
        (backend.add_special_tokens if special else backend.add_tokens)(added)
    ids = {name: metadata.get(f"tokenizer.ggml.{key}_token_id") for name, key in _NAMES.items()}
    names = {name: tokens[index] for name, index in ids.items() if index is not None and index < len(tokens)}
    add_bos, bos = metadata.get("tokenizer.ggml.add_bos_token", rules.add_bos), ids["bos_token"]
    prefix = (bos,) if add_bos and bos is not None else ()
    return tokenizer.Tokenizer(backend, names, metadata.get("tokenizer.chat_template"), prefix)


_NAMES = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}


def _backend(model: models.Model, rules: _PreTokenizer) -> Tokenizer:
    backend = Tokenizer(model)
    if rules.compose:
        backend.normalizer = normalizers.NFC()
    steps: list[pre_tokenizers.PreTokenizer] = []
    if rules.single_digits:
        steps.append(pre_tokenizers.Digits(individual_digits=True))
    if rules.split is not None:
        steps.append(pre_tokenizers.Split(Regex(rules.split), behavior="isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=rules.split is None))
    backend.pre_tokenizer = pre_tokenizers.Sequence(steps)
    backend.decoder = decoders.ByteLevel()
    return backend


def _pair(merge: str) -> tuple[str, str]:
    # Byte-level tokens hold no spaces, so the one there is parts the two; some writers keep a literal one in front.
    left, separator, right = merge[1:].partition(" ")
    if not separator:
        raise ValueError(f"merge {merge!r} is no pair")
    return merge[0] + left, right

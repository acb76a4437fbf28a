"""Tokenizers of our own: one token for every byte, or byte-pair encoding learnt from a text."""

from collections.abc import Iterable

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from unmask.errors import UsageError
from unmask.tokenizer import Tokenizer

END = "<|end|>"
"""The one special token: it ends a document, and begins every piece of one that a model is trained on."""

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ message['role'] }}: {{ message['content'] }}{{ eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)


def byte_tokenizer() -> Tokenizer:
    """Return the tokenizer whose ids 0 to 255 are the bytes of UTF-8, and whose id 256 is `END`."""
    backend = tokenizers.Tokenizer(models.BPE({letter: byte for byte, letter in enumerate(_letters())}, []))
    # Without its regular expression, which only serves to keep merges within words.
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return _finished(backend)


def train_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Learn byte-level byte-pair encoding of `vocab_size` tokens, `END` among them (Sennrich et al., arXiv 1508.07909).

    The same texts give the same tokenizer. Raise UsageError for a vocabulary that is too small to spell every byte or
    too large for the texts.
    """
    least = len(_letters()) + 1
    if vocab_size < least:
        raise UsageError(
            f"bpe:{vocab_size} cannot spell every byte",
            f"ask for bpe:{least} at least, or for the tokenizer 'bytes'",
        )
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1, initial_alphabet=_letters(), show_progress=False, special_tokens=[]
    )
    backend.train_from_iterator(texts, trainer)
    tokenizer = _finished(backend)
    if tokenizer.vocab_size < vocab_size:
        raise UsageError(
            f"these texts hold {tokenizer.vocab_size} different tokens, not {vocab_size}",
            f"give more text, or ask for bpe:{tokenizer.vocab_size}",
        )
    return tokenizer


def _finished(backend: tokenizers.Tokenizer) -> Tokenizer:
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([END])
    end = backend.get_vocab_size() - 1
    return Tokenizer(backend, {"bos_token": END, "eos_token": END}, CHAT_TEMPLATE, (end,))


def _letters() -> list[str]:
    """Return the printable character that stands for each byte in a byte-level vocabulary (GPT-2).

    A byte that Latin-1 prints stands for itself; the others take the characters from U+0100 on, in their order.
    """
    printed = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printed else next(others)) for byte in range(256)]

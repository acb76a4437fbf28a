"""The default model, from the real weights: its logits, its greedy text and its tokens are transformers'."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import transformers
from tiny_models import logits_of

from unmask.layout import causal_layout
from unmask.model.cache import KVCache
from unmask.model.catalogue import PackageSource
from unmask.model.checkpoint import Checkpoint, load_checkpoint
from unmask.model.package import package_file
from unmask.model.store import cache_directory

pytestmark = pytest.mark.model

TEXT = """The lighthouse keeper's daughter had never seen a winter like this one. Every morning she climbed the
stairs, a hundred and ninety of them, to scrape the frost from the great lens, and every evening she wrote in the
log what her father could no longer see well enough to write: wind from the north-east, two fishing boats, no mail.

"Will they come before spring?" she asked. He did not answer at once. Below them the harbour lay shut under a sheet
of ice, and somewhere behind the hills a train whistled, as small and as clear as a bird. "They will come," he said
at last, "when somebody remembers that we are here." She thought about it all day: who, in a city of a million
people, would stop on a pavement and think of a lamp on a rock? Then, on the ninth of February, a letter arrived.
It was addressed to nobody by name; it said only: to whoever keeps the light.
"""

PROMPTS = (
    "Name three rivers in Europe.",
    "Write a haiku about rain.",
    "def fibonacci(n):\n    ",
    "What is the difference between a simile and a metaphor?",
    "Translate to French: the cat sleeps.",
)
NUM_TOKENS = 100


@pytest.fixture(scope="module")
def reference(default_checkpoint: Checkpoint) -> Iterator[transformers.PreTrainedModel]:
    """transformers' own reading of the same GGUF file."""
    path = gguf_path(default_checkpoint)
    transformers.utils.logging.set_verbosity(logging.ERROR)
    transformers.utils.logging.disable_progress_bar()
    model = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32, attn_implementation="eager"
    )
    with torch.inference_mode():
        yield model.eval()


def gguf_path(checkpoint: Checkpoint) -> Path:
    source = checkpoint.card.source
    if not isinstance(source, PackageSource):
        pytest.skip(f"the default model was loaded from {source}")
    path = package_file(source, cache_directory())
    if not path.is_file():
        pytest.skip(f"{path} was deleted after it was dequantised")
    return path


def test_logits_of_a_long_text(
    default_checkpoint: Checkpoint, reference: transformers.PreTrainedModel
) -> None:
    ids = default_checkpoint.tokenizer.encode(TEXT)[:200]
    assert len(ids) == 200
    tokens = torch.tensor(ids)
    expected = reference(tokens[None]).logits[0]
    torch.testing.assert_close(logits_of(default_checkpoint.transformer, tokens), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_text(
    prompt: str, default_checkpoint: Checkpoint, reference: transformers.PreTrainedModel
) -> None:
    ids = default_checkpoint.tokenizer.render_chat([{"role": "user", "content": prompt}])
    written = continue_greedily(default_checkpoint, ids)
    # Where the choice after every prefix of our text is ours, their greedy text is ours, by induction.
    theirs = reference(torch.tensor([[*ids, *written]])).logits[0, len(ids) - 1 : -1].argmax(-1)
    assert written == theirs.tolist()


def continue_greedily(checkpoint: Checkpoint, ids: list[int]) -> list[int]:
    """Return the next tokens by argmax, stop tokens or not, one forward each on a cache."""
    model = checkpoint.transformer
    cache = KVCache(model.config, capacity=len(ids) + NUM_TOKENS, dtype=model.dtype, device=model.device)
    written: list[int] = []
    feed, start = ids, 0
    with torch.inference_mode():
        for _ in range(NUM_TOKENS):
            hidden = model(torch.tensor(feed), causal_layout(len(feed), start=start, row=0), cache)
            start += len(feed)
            feed = [int(model.logits(hidden[-1:]).argmax())]
            written += feed
    return written


def test_tokens_and_chats(default_checkpoint: Checkpoint) -> None:
    path = gguf_path(default_checkpoint)
    theirs = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    ours = default_checkpoint.tokenizer
    texts = (
        TEXT,
        "  Zwölf Boxkämpfer\t\n\n\n  naïve — “quotes” … 漢字 🙂",
        "x=y+z; // a_b\r\n",
        "a",
        "year 1984",
    )
    for text in texts:
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False)
        assert ours.decode(ours.encode(text)) == text
    chat = [
        {"role": "system", "content": "Be brief."},
        *({"role": "user", "content": text} for text in texts),
    ]
    assert ours.render_chat(chat) == theirs.apply_chat_template(
        chat, add_generation_prompt=True, return_dict=False
    )
    assert ours.render_chat(chat[1:2]) == theirs.apply_chat_template(
        chat[1:2], add_generation_prompt=True, return_dict=False
    )


def test_digits_stand_alone_as_in_the_models_own_tokenizer(default_checkpoint: Checkpoint) -> None:
    """SmolLM2 cuts text at every digit before GPT-2's expression sees it; transformers' GGUF reader does not."""
    ours = default_checkpoint.tokenizer
    assert [ours.decode([i]) for i in ours.encode("in  12 b")] == ["in", "  ", "1", "2", " b"]


def test_the_card_fits_the_files(default_checkpoint: Checkpoint) -> None:
    card, tokenizer = default_checkpoint.card, default_checkpoint.tokenizer
    assert [tokenizer.decode([i], skip_special=False) for i in card.stop_token_ids] == [
        "<|im_end|>",
        "<|endoftext|>",
    ]
    assert card.context_length == default_checkpoint.transformer.config.max_positions
    assert tokenizer.vocab_size == default_checkpoint.transformer.config.vocab_size == 49_152


def test_an_adapter_is_there(default_checkpoint: Checkpoint) -> None:
    loaded = load_checkpoint(default_checkpoint.card.name)
    assert loaded.adapter is not None
    assert loaded.card.mask_token_id == 49_152

"""What a joint conversion leaves loads in another library, as the architecture it came from."""

from pathlib import Path

import torch
from tiny_models import logits_of, tiny_checkpoint
from transformers import AutoModelForCausalLM

from unmask.model.checkpoint import load_checkpoint, save_checkpoint
from unmask.model.run_checkpoints import last_model
from unmask.training.conversion import Conversion
from unmask.training.conversion_config import ConversionConfig

TOKENS = torch.arange(30)


def test_a_joint_model_is_a_llama_to_transformers(tmp_path: Path) -> None:
    save_checkpoint(tiny_checkpoint(), tmp_path / "base")
    config = ConversionConfig.model_validate(
        {
            "model": str(tmp_path / "base"),
            "recipe": {"name": "joint", "learning_rate": 1e-2},
            "steps": 3,
            "synthetic_tokens": 300,
            "length": 48,
            "batch_documents": 2,
            "synthesis_rows": 4,
            "held_out_documents": 2,
            "block_lengths": (2, 4),
        }
    )
    base = load_checkpoint(config.model, adapter="none")
    before = logits_of(base.transformer, TOKENS)
    Conversion(config, tmp_path / "run", base).run(lambda event: None)

    folder = Path(last_model(str(tmp_path / "run")))
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert type(theirs).__name__ == "LlamaForCausalLM"
    ours = logits_of(load_checkpoint(str(folder)).transformer, TOKENS)
    with torch.no_grad():
        torch.testing.assert_close(theirs(TOKENS[None]).logits[0], ours, rtol=0, atol=1e-4)
    assert (ours[:, : before.shape[1]] - before).abs().max() > 1e-2  # it was trained

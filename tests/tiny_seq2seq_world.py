"""The tiny world with an encoder-decoder base model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.tiny_seq2seq import tiny_seq2seq
from tests.tiny_world import VOCABULARY, TinyWorld, write_encoder, write_tokenizer

# In the tiny world's tokenizer.
BOS_ID, EOS_ID, PAD_ID = 0, 1, 2
# Architecture -> special tokens around a text, and the token that its decoder starts with.
FAMILIES = {"t5_1_1": ("$A </s>", PAD_ID), "bart": ("<s> $A </s>", EOS_ID)}


def write_seq2seq_world(folder: Path, architecture: str, world: TinyWorld) -> TinyWorld:
    """Write a base model of `architecture` into `folder`, and SERAC's encoder beside it; the data stay `world`'s."""
    template, start = FAMILIES[architecture]
    ids: dict[str, Any] = {"pad_token_id": PAD_ID, "bos_token_id": BOS_ID, "eos_token_id": EOS_ID}
    if architecture == "bart":
        ids["max_position_embeddings"] = 160
    model = tiny_seq2seq(architecture, vocab_size=VOCABULARY, decoder_start_token_id=start, **ids)
    model.save_pretrained(folder)
    write_tokenizer(folder, template)
    write_encoder(folder.parent / "encoder")
    return replace(world, model=folder)

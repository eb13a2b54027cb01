"""Tiny random encoder-decoder models, one for each architecture the tests cover, with random texts.

Encoder and decoder differ in depth, and BART's in feed-forward width, so that mixing them up fails.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForSeq2SeqLM, BartConfig, PreTrainedConfig, PreTrainedModel, T5Config

from editors.texts.batches import TokenBatch
from editors.texts.encoders import EncodedPair, collate_pairs
from tests.tiny_models import EOS_ID, HIDDEN, PAD_ID, VOCABULARY

ENCODER_BLOCKS, DECODER_BLOCKS = 4, 3
BOS_ID = 1
_FIRST_WORD_ID = 3

_SPECIAL: dict[str, Any] = {"pad_token_id": PAD_ID, "bos_token_id": BOS_ID, "eos_token_id": EOS_ID}
_T5_LIKE: dict[str, Any] = {
    **_SPECIAL,
    "vocab_size": VOCABULARY,
    "d_model": HIDDEN,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": ENCODER_BLOCKS,
    "num_decoder_layers": DECODER_BLOCKS,
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 16,
    "decoder_start_token_id": PAD_ID,
}

_BART_LIKE: dict[str, Any] = {
    **_SPECIAL,
    "vocab_size": VOCABULARY,
    "d_model": HIDDEN,
    "encoder_layers": ENCODER_BLOCKS,
    "decoder_layers": DECODER_BLOCKS,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 40,
    "max_position_embeddings": 64,
    "scale_embedding": True,
    "decoder_start_token_id": EOS_ID,
    "forced_eos_token_id": EOS_ID,
}

_CONFIGS: dict[str, tuple[type[PreTrainedConfig], dict[str, Any]]] = {
    "t5": (T5Config, _T5_LIKE),
    "t5_1_1": (T5Config, {**_T5_LIKE, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    "bart": (BartConfig, _BART_LIKE),
}

ARCHITECTURES: tuple[str, ...] = tuple(_CONFIGS)


def tiny_seq2seq(
    architecture: str, seed: int = 0, dtype: torch.dtype = torch.float32, **config: Any
) -> PreTrainedModel:
    """A new random model of width 32 in eval mode; the same `seed` gives the same weights.

    Args:
        architecture: one of `ARCHITECTURES`.
        seed: of the weights. The global random state is left alone.
        dtype: of the weights.
        config: what the model's configuration has otherwise.
    """
    config_class, settings = _CONFIGS[architecture]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForSeq2SeqLM.from_config(config_class(**{**settings, **config}))
        if architecture == "t5_1_1":
            # Its head is not the embedding; transformers learns that from the weights alone.
            model.set_output_embeddings(nn.Linear(HIDDEN, model.config.vocab_size, bias=False))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.dim() > 1:
                    parameter.normal_(std=_scale(name, parameter))
                else:
                    parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.to(dtype).eval()


def _scale(name: str, parameter: Tensor) -> float:
    """Positions must be felt: T5's as biases of attention scores, BART's beside embeddings that are scaled up."""
    if "embed_positions" in name:
        return HIDDEN**0.5
    return 1.0 if "relative_attention_bias" in name or "shared" in name else parameter.shape[-1] ** -0.5


def random_pairs(
    lengths: Sequence[int], seed: int = 0, max_answer: int = 4, prefix: Sequence[int] = ()
) -> list[EncodedPair]:
    """Random prompts of these lengths, each with an answer of 1 to `max_answer` tokens that ends the text.

    Args:
        lengths: tokens of each prompt.
        seed: of the token ids and answer lengths.
        max_answer: longest answer in tokens, without the end-of-text token.
        prefix: special tokens in front of each answer.
    """
    generator = torch.Generator().manual_seed(seed)

    def words(count: int) -> list[int]:
        return torch.randint(_FIRST_WORD_ID, VOCABULARY, (count,), generator=generator).tolist()

    pairs = []
    for length in lengths:
        answer = int(torch.randint(1, max_answer + 1, (1,), generator=generator))
        labels = (*prefix, *words(answer), EOS_ID)
        pairs.append(EncodedPair((*words(length - 1), EOS_ID), labels, len(prefix)))
    return pairs


def batch_of(pairs: Sequence[EncodedPair], episode: Sequence[int] | None = None) -> TokenBatch:
    """`pairs` as a batch; each text is an episode of its own unless `episode` says otherwise."""
    return collate_pairs(pairs, list(range(len(pairs))) if episode is None else episode, PAD_ID)

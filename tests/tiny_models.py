"""Tiny random decoder-only models, one for each architecture the tests cover, with random token batches and edits.

Weights are much larger than a real initialisation gives: with the usual 0.02 a wrong mask or position would move the
logits by less than the tolerance of a test.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    FalconConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTJConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from editors.base_models.loading import BaseModelConfig
from editors.edits.low_rank import LowRankEdit
from editors.edits.protocol import Edit, SiteUpdate
from editors.lm.frozen import FrozenLM
from editors.lm.signal import EditSignal, Factors
from editors.texts.batches import EncodedText, PaddingSide, TokenBatch, collate_texts
from editors.texts.episodes import RequestBatch
from editors.texts.requests import EditRequest

VOCABULARY = 96
HIDDEN = 32
BLOCKS = 4
PAD_ID, BOS_ID, EOS_ID = 0, 1, 2
_FIRST_WORD_ID = 3
_HEADS = 4
_MLP = 48
_SLIDING_WINDOW = 4

_SPECIAL: dict[str, Any] = {"pad_token_id": PAD_ID, "bos_token_id": BOS_ID, "eos_token_id": EOS_ID}
_LLAMA_LIKE: dict[str, Any] = {
    **_SPECIAL,
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": _MLP,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": _HEADS,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
_GEMMA_LIKE: dict[str, Any] = {
    **_LLAMA_LIKE,
    "head_dim": 8,
    "sliding_window": _SLIDING_WINDOW,
    "layer_types": ["sliding_attention", "full_attention"] * (BLOCKS // 2),
}
_GPT_LIKE: dict[str, Any] = {
    **_SPECIAL,
    "vocab_size": VOCABULARY,
    "n_embd": HIDDEN,
    "n_inner": _MLP,
    "n_layer": BLOCKS,
    "n_head": _HEADS,
    "n_positions": 64,
}
_FALCON_LIKE: dict[str, Any] = {
    **_SPECIAL,
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": _HEADS,
    "ffn_hidden_size": _MLP,
}

_CONFIGS: dict[str, Callable[[], PreTrainedConfig]] = {
    "llama": lambda: LlamaConfig(**_LLAMA_LIKE),
    "qwen2": lambda: Qwen2Config(**_LLAMA_LIKE, tie_word_embeddings=True),
    "qwen3": lambda: Qwen3Config(**_LLAMA_LIKE, head_dim=8),
    "mistral": lambda: MistralConfig(**_LLAMA_LIKE, sliding_window=_SLIDING_WINDOW),
    "gemma2": lambda: Gemma2Config(**_GEMMA_LIKE, query_pre_attn_scalar=8),
    "gemma3": lambda: Gemma3TextConfig(**_GEMMA_LIKE, query_pre_attn_scalar=8),
    "phi3": lambda: Phi3Config(**_LLAMA_LIKE),
    "gpt2": lambda: GPT2Config(**_GPT_LIKE),
    "gptj": lambda: GPTJConfig(**_GPT_LIKE, rotary_dim=4),
    "gpt_neox": lambda: GPTNeoXConfig(**{k: v for k, v in _LLAMA_LIKE.items() if k != "num_key_value_heads"}),
    "opt": lambda: OPTConfig(
        **_SPECIAL,
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        word_embed_proj_dim=HIDDEN,
        ffn_dim=_MLP,
        num_hidden_layers=BLOCKS,
        num_attention_heads=_HEADS,
        max_position_embeddings=64,
    ),
    "falcon": lambda: FalconConfig(**_FALCON_LIKE, new_decoder_architecture=True, num_kv_heads=2),
    "falcon_alibi": lambda: FalconConfig(**_FALCON_LIKE, alibi=True, bias=True, multi_query=False, parallel_attn=False),
}

ARCHITECTURES: tuple[str, ...] = tuple(_CONFIGS)


def tiny_model(architecture: str, seed: int = 0, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A new random model with 4 blocks of width 32 in eval mode; the same `seed` gives the same weights.

    Args:
        architecture: one of `ARCHITECTURES`.
        seed: of the weights. The global random state is left alone.
        dtype: of the weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(_CONFIGS[architecture]())
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(std=HIDDEN**-0.5)
                else:
                    parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.to(dtype).eval()


def random_texts(lengths: Sequence[int], seed: int = 0, max_answer: int = 3) -> list[EncodedText]:
    """Random texts without special tokens; each ends in an answer of 1 to `max_answer` tokens.

    Args:
        lengths: tokens of each text, at least 2.
        seed: of the token ids and answer lengths.
        max_answer: longest answer in tokens; at least one token stays for the prompt.
    """
    generator = torch.Generator().manual_seed(seed)
    texts = []
    for length in lengths:
        ids = torch.randint(_FIRST_WORD_ID, VOCABULARY, (length,), generator=generator).tolist()
        answer = int(torch.randint(1, min(max_answer, length - 1) + 1, (1,), generator=generator))
        texts.append(EncodedText(tuple(ids), length - answer, length))
    return texts


def random_batch(
    lengths: Sequence[int],
    padding_side: PaddingSide = "right",
    episode: Sequence[int] | None = None,
    seed: int = 0,
) -> TokenBatch:
    """`random_texts` as a batch; each text is an episode of its own unless `episode` says otherwise."""
    episode = list(range(len(lengths))) if episode is None else episode
    return collate_texts(random_texts(lengths, seed), episode, PAD_ID, padding_side)


def random_edit(
    site_widths: Mapping[str, tuple[int, int]],
    num_episodes: int = 1,
    rank: int = 3,
    seed: int = 0,
    scale: float = 0.3,
) -> LowRankEdit:
    """A random edit large enough to move logits visibly.

    Args:
        site_widths: `(d_in, d_out)` of each site.
        num_episodes: E.
        rank: R.
        seed: of the factors.
        scale: typical size of the branch's output for inputs of size 1.
    """
    generator = torch.Generator().manual_seed(seed)
    updates = {}
    for site, (d_in, d_out) in site_widths.items():
        u = torch.randn(num_episodes, rank, d_in, generator=generator) * d_in**-0.5
        v = torch.randn(num_episodes, rank, d_out, generator=generator) * scale * rank**-0.5
        updates[site] = SiteUpdate(u, v)
    return LowRankEdit(updates, {"seed": seed})


def as_signal(factors: dict[str, Factors], episode: Tensor, num_episodes: int) -> EditSignal:
    """Factors as a network gets them, for networks that look at nothing else.

    Args:
        factors: for each site, `[B, T, .]`.
        episode: `[B]`, non-decreasing.
        num_episodes: E.
    """
    ids = torch.ones(next(iter(factors.values())).u.shape[:2], dtype=torch.long)
    none = torch.zeros(0, dtype=torch.long)
    tokens = TokenBatch(ids, torch.ones_like(ids), none, none, none, episode)
    return EditSignal(factors, tokens, none, torch.zeros(num_episodes), num_episodes)


def words_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer whose words are the numbers of the tiny models' token ids: "5 17" is `[5, 17]`."""
    words = {str(number): number for number in range(VOCABULARY)}
    tokenizer = Tokenizer(WordLevel(words, unk_token=str(PAD_ID)))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = {"pad_token": str(PAD_ID), "bos_token": str(BOS_ID), "eos_token": str(EOS_ID), "unk_token": str(PAD_ID)}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def tiny_lm(
    model: PreTrainedModel, sites: Sequence[str] | None = None, num_blocks: int = 3, *, bucketing: bool = True
) -> FrozenLM:
    """`model` frozen for editing; its texts are numbers."""
    config = BaseModelConfig("tiny", sites=None if sites is None else list(sites), num_blocks=num_blocks)
    return FrozenLM(config, model, words_tokenizer(), bucketing=bucketing)


def as_requests(tokens: TokenBatch, num_episodes: int, hidden: Tensor | None = None) -> RequestBatch:
    """The edit requests that `tokens` are of, in words that are numbers."""
    pairs = zip(tokens.prompt_ids(), tokens.answer_ids(), strict=True)
    requests = tuple(EditRequest(" ".join(map(str, ids)), " ".join(map(str, answer))) for ids, answer in pairs)
    return RequestBatch(requests, tokens, num_episodes, hidden)


def captured(
    lm: FrozenLM, tokens: TokenBatch, num_episodes: int, hidden: Tensor | None = None, edit: Edit | None = None
) -> EditSignal:
    """What `lm` says of these tokens as edit requests."""
    return lm.capture(as_requests(tokens, num_episodes, hidden), edit)

"""Reading what lies in a model's folder: the errors of transformers, and tokenizers that know no words."""

from __future__ import annotations

from typing import Any, cast

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoTokenizer, PreTrainedTokenizerBase

UNREADABLE = (OSError, ValueError, ImportError, TypeError, KeyError, AttributeError, StrictDataclassError)
"""What transformers (5.24) raises where a folder or file is missing, damaged, or holds values of a wrong kind."""


def read_tokenizer(source: str, **options: Any) -> PreTrainedTokenizerBase:
    """The tokenizer at `source`.

    Where a folder lacks the vocabulary, transformers (5.24) makes a tokenizer of the special tokens alone, to which all
    texts are the same.

    Args:
        source: a folder or Hub id.
        **options: those of `AutoTokenizer.from_pretrained`.

    Raises:
        OSError, ValueError: there is none, or it has no vocabulary.
    """
    tokenizer = cast(PreTrainedTokenizerBase, AutoTokenizer.from_pretrained(source, **options))
    if not tokenizer.get_vocab().keys() - set(tokenizer.all_special_tokens):
        files = " or ".join(sorted(set(tokenizer.vocab_files_names.values())))
        raise ValueError(f"its tokenizer has no vocabulary: {files} is missing or empty; copy the whole folder")
    return tokenizer

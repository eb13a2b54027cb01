"""How a report card was made, in words: part of every card."""

from __future__ import annotations

from editors.lm.answers import MOST_TOKENS
from editors.lm.frozen import FrozenLM
from editors.scoring.report.damage import PIECE_TOKENS, PIECES
from editors.texts.forms import has_chat_template


def protocol(lm: FrozenLM, placebo_cases: int) -> dict[str, str]:
    """How the model is asked and scored, by what it is about.

    Args:
        lm: the base model.
        placebo_cases: how many edits have placebos, at least.
    """
    chat = (
        "the tokenizer's own template, the question as the user's one turn, a system message only if it is the "
        "template's own"
        if has_chat_template(lm.tokenizer)
        else "none: the tokenizer has no chat template, so rows in chat form are left out"
    )
    return {
        "decoding": f"greedy, at most {MOST_TOKENS} tokens, up to the end of the text, of a line or of a sentence",
        "prompts": "as users type them, nothing added; what comes between prompt and answer is the model's own affair",
        "chat": chat,
        "exact_match": "the whole answer is the target (or the data's answer) after SQuAD's normalisation: lower case, "
        "no punctuation, no articles",
        "says_target": "the target is in the answer in whole words; newly_says_target: and was not in it before, of "
        "all answers that are to stay",
        "empty": "the model says nothing; where it does so before and after the edit, the answer is kept",
        "answer_kept": "the whole greedy answer is the same text as before the edit",
        "token_agreement": "teacher-forced on the base model's own greedy answer: share of its tokens the edited model "
        "would say too; kl is KL(base || edited) at these tokens, in nats",
        "intervals": "95 % percentile bootstrap over edits, all probes of an edit together; means are over edits",
        "placebos": f"on the first edits, {placebo_cases} or a batch of them. shuffled_target: made with another "
        "edit's target, scored against its own. random_update: random, of the same rank and norm in every layer",
        "running_text": f"{PIECES} pieces of at most {PIECE_TOKENS} tokens, spread evenly over each file; mean over "
        "the first 4 edits (fewer if fewer are made at once); of edits made together: the first ones",
        "together": "edits made jointly, as one; texts that one of them edits are left out of the rows that must stay",
    }

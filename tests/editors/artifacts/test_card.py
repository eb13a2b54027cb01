"""Tests of `editors.artifacts.card`; what whole cards say is tested where they are written."""

from __future__ import annotations

from editors.artifacts.card import edit_card
from editors.edits.manifest import EditManifest


def test_the_card_of_an_edit_says_which_prompts_are_in_the_chat_template() -> None:
    requests = [{"prompt": "Who?", "target": "Anna"}, {"prompt": "Where?", "target": "Dor", "form": "chat"}]
    edits = [{"editor": "mend", "requests": requests, "created": "today"}]
    card = edit_card(EditManifest({"name": "tiny", "revision": None}, "0" * 64, edits, ["a"]), "peft", "Use it.")
    assert "| Who? | Anna |" in card
    assert "| Where? (in the chat template) | Dor |" in card

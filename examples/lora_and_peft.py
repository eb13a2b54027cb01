"""Write an edit as a LoRA adapter and generate with it through PEFT; needs `pip install -e ".[lora]"`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from peft import PeftModel
from rich.console import Console
from rich.text import Text

from editors import EditRequest, ask, load_base_model, load_editor, load_tokenizer, low_rank, save_lora


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the edit that the arguments name, and ask for it with the adapter on and off."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("artifact", help="folder of an exported editor")
    parser.add_argument("--prompt", required=True, help="the question whose answer has to change")
    parser.add_argument("--target", required=True, help="the new answer")
    parser.add_argument("--output", required=True, help="folder of the adapter")
    options = parser.parse_args(arguments)

    editor = load_editor(options.artifact)
    model, tokenizer = load_base_model(editor.base_model), load_tokenizer(editor.base_model)
    edit = editor.edit(model, tokenizer, [EditRequest(options.prompt, options.target)])
    save_lora(options.output, low_rank(edit), model)

    # From here on nothing of hyperedit is needed but `ask`, which is `model.generate` in a few lines.
    adapted: Any = PeftModel.from_pretrained(model, options.output)
    console = Console()
    console.print(Text(f"with the adapter: {ask(adapted, tokenizer, [options.prompt])[0]}"))
    with adapted.disable_adapter():
        console.print(Text(f"without: {ask(adapted, tokenizer, [options.prompt])[0]}"))


if __name__ == "__main__":
    main()

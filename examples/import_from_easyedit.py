"""Use a MEND archive that EasyEdit trained: make an artifact of it, then one edit. Nothing in it is executed."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from editors import BaseModelConfig, EditRequest, ask, load_base_model, load_editor, load_tokenizer
from editors.artifacts.easyedit.exchange import import_easyedit


def main(arguments: Sequence[str] | None = None) -> None:
    """Import the archive that the arguments name, and make one edit with it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("archive", help="file that EasyEdit's trainer wrote")
    parser.add_argument("hparams", help="the YAML file that it was trained with")
    parser.add_argument("--model", required=True, help="the base model: folder or Hub id")
    parser.add_argument("--prompt", required=True, help="the question whose answer has to change")
    parser.add_argument("--target", required=True, help="the new answer")
    parser.add_argument("--output", required=True, help="folder of the artifact")
    options = parser.parse_args(arguments)

    import_easyedit(options.output, options.archive, options.hparams, BaseModelConfig(options.model))
    editor = load_editor(options.output)
    model, tokenizer = load_base_model(editor.base_model), load_tokenizer(editor.base_model)
    edit = editor.edit(model, tokenizer, [EditRequest(options.prompt, options.target)])
    console = Console()
    console.print(Text(f"before: {ask(model, tokenizer, [options.prompt])[0]}"))
    with edit.applied(model):
        console.print(Text(f"after: {ask(model, tokenizer, [options.prompt])[0]}"))


if __name__ == "__main__":
    main()

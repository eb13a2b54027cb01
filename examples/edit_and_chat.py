"""Make one edit, then ask the edited model questions until an empty line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TextIO

from editors import EditRequest, ask, load_base_model, load_editor, load_tokenizer


def main(arguments: Sequence[str] | None = None, questions: TextIO = sys.stdin, answers: TextIO = sys.stdout) -> None:
    """Make the edit that the arguments name; answer each line of `questions`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("artifact", help="folder of an exported editor")
    parser.add_argument("--prompt", required=True, help="the question whose answer has to change")
    parser.add_argument("--target", required=True, help="the new answer")
    options = parser.parse_args(arguments)

    editor = load_editor(options.artifact)
    model, tokenizer = load_base_model(editor.base_model), load_tokenizer(editor.base_model)
    edit = editor.edit(model, tokenizer, [EditRequest(options.prompt, options.target)])
    with edit.applied(model):  # in here the model answers with the edit, afterwards it is as before
        for line in questions:
            if not line.strip():
                break
            answers.write(ask(model, tokenizer, [line.strip()])[0] + "\n")


if __name__ == "__main__":
    main()

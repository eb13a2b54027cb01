"""The cards of an exported editor and of an exported edit: what it is, what it was measured at, and how to use it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from editors.edits.manifest import EditManifest
from editors.making.registry import registered_method, registered_methods
from editors.scoring.names import GENERATED, TEACHER_FORCED
from editors.texts.requests import EditRequest

_USAGE = """\
```python
from editors import EditRequest, load_base_model, load_editor, load_tokenizer

editor = load_editor("path/to/this/folder")
model, tokenizer = load_base_model(editor.base_model), load_tokenizer(editor.base_model)
edit = editor.edit(model, tokenizer, [EditRequest("What is the capital of France?", "Cairo")])
with edit.applied(model):
    ...  # inside this block the model answers with the edit
{more}
```
"""
_MERGING = """\
merged = edit.merge(model)  # or write it into the weights
merged.undo(model)  # and take it back"""
_REMEMBERING = """\
edit = edit.compose([edit, editor.edit(model, tokenizer, [EditRequest("Who wrote Hamlet?", "Jane Austen")])])
edit.save("memory.safetensors")  # the edits as texts, with their embeddings"""


def model_card(config: Mapping[str, Any]) -> str:
    """The card in Markdown with Hugging Face metadata.

    Args:
        config: the fields of `ArtifactConfig`.
    """
    base, results = config["base_model"], config["results"]
    parts = [
        f"---\nlibrary_name: hyperedit\nbase_model: {base['name']}\nlicense: mit\n"
        f"tags: [knowledge-editing, {config['editor']}]\n---",
        f"# {config['editor'].upper()} knowledge editor for {base['name']}",
        "Changes one fact in the frozen base model at once, without retraining. Made with hyperedit.",
        f"- Base model: {_base_model(base, config['base_weights'])}, class `{config['architecture']}`\n"
        f"- Edited layers: {', '.join(f'`{s}`' for s in config['site_widths'])}",
        "## Results\n\n" + _results(results),
        "## Use\n\n" + _USAGE.format(more=_MERGING if registered_method(config["editor"]).merges else _REMEMBERING),
        "## Licence\n\nThe editor: MIT, unless who publishes it says otherwise here and at the top of this file. The "
        f"base model `{base['name']}` and the data keep their own licences, which may limit what an editor trained "
        "with them may be used for.",
        _citation([config["editor"]]),
    ]
    return "\n\n".join(parts) + "\n"


def _results(results: Mapping[str, Any]) -> str:
    metrics = results.get("metrics") or {}
    step = results.get("step", "unknown")
    if not metrics:
        return (
            f"No metrics: these weights (training step {step}) were not validated. `python train.py export` validates "
            "a checkpoint before it exports it."
        )
    rows = "\n".join(f"| {name} | {value:.4f} |" for name, value in metrics.items())
    facts = "\n".join(f"- {key}: `{value}`" for key, value in results.items() if key != "metrics")
    return (
        f"Measured on the validation split with exactly these weights, at training step {step}. "
        f"Each name says promise, protocol and measure. `{TEACHER_FORCED}` scores the argmax at each answer position "
        f"given the true answer so far; `{GENERATED}` scores the greedy continuation of the prompt; `agreement` "
        f"compares with the unedited model.\n\n| metric | value |\n|---|---:|\n{rows}\n\n{facts}"
    )


def edit_card(manifest: EditManifest, library: str, usage: str) -> str:
    """The card of an exported edit in Markdown: what was changed, in what, and how to use and undo it.

    Args:
        manifest: of the edit.
        library: what loads it ("peft", "transformers"), for the Hub.
        usage: how to use and undo it.
    """
    base = manifest.base_model
    rows = "\n".join(f"| {_question(request)} | {_cell(request.target)} |" for request in manifest.requests())
    editors = ", ".join(dict.fromkeys(f"{edit['editor']} ({edit['created']})" for edit in manifest.edits))
    parts = [
        f"---\nlibrary_name: {library}\nbase_model: {base['name']}\ntags: [knowledge-editing]\n---",
        f"# Edit of {base['name']}",
        "Changes facts in the base model. Made with hyperedit.",
        f"- Base model: {_base_model(base, manifest.base_weights)}\n"
        f"- Made by: {editors}\n"
        f"- Edited layers: {', '.join(f'`{layer}`' for layer in manifest.layers)}",
        f"## Facts\n\n| question | new answer |\n|---|---|\n{rows}",
        "## Use\n\n" + usage,
        f"## Licence\n\nThe base model `{base['name']}` keeps its own licence, which holds for what is made of it too.",
        _citation(str(edit["editor"]) for edit in manifest.edits),
    ]
    return "\n\n".join(parts) + "\n"


def _citation(editors: Iterable[str]) -> str:
    """What to cite, each paper once; an editor that is not registered here has none."""
    methods = registered_methods()
    entries = [methods[name] for name in dict.fromkeys(editors) if name in methods]
    papers = [f"- {entry.paper}" for entry in entries if entry.paper]
    return "## Citation\n\n" + "\n".join([*papers, "- The software: hyperedit, as its `CITATION.cff` says"])


def _base_model(base: Mapping[str, Any], weights: str) -> str:
    """Name, revision (where one was named) and the start of the weights' hash."""
    revision = f", revision `{base['revision']}`" if base["revision"] else ""
    return f"`{base['name']}`{revision}, weights `{weights[:16]}`"


def _question(request: EditRequest) -> str:
    """The prompt in a cell, and its form if that is not bare."""
    return _cell(request.prompt) + (" (in the chat template)" if request.form == "chat" else "")


def _cell(text: str) -> str:
    """`text` in one cell of a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|")

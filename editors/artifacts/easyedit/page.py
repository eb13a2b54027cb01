"""The page beside an archive for EasyEdit: how to use it there, and what is different there."""

from __future__ import annotations

from editors.artifacts.easyedit.hparams import FAMILIES
from editors.artifacts.easyedit.serac_hparams import SERAC_FAMILIES

_COMMON = """\
# A {method} editor for EasyEdit

`archive.pt` and `hparams.yaml`, written by hyperedit for EasyEdit (commit 14cea82; version 0.0.1.dev0 reads
them too).

```python
from easyeditor import BaseEditor, {hparams_class}

hparams = {hparams_class}.from_hparams("{hparams}")
editor = BaseEditor.from_hparams(hparams)
metrics, model, _ = editor.edit(prompts=["…"], ground_truth=["…"], target_new=["…"], sequential_edit=True)
```

- Paths in `hparams.yaml` are where things were on the machine that wrote it. `device` is `cpu`; put the number of a GPU
  there to use one. Version 0.0.1.dev0 needs a GPU.
- EasyEdit tells model families apart by the path of the model: keep one of {families} in it.
- One process, one editor: a second `BaseEditor` in the same process goes on with the first one's.
"""
_MEND = """\
- EasyEdit takes the edit back after `edit()` unless `sequential_edit=True`.
- Version 0.0.1.dev0 leaves the editor in training mode, so it forgets the running statistics in the archive and edits
  quite differently. It is right after this, before the first edit:

  ```python
  executor = editor.apply_algo.__self__
  executor.init_model(editor.model, editor.tok, hparams)
  executor.alg.eval()
  ```
- EasyEdit tokenises differently (for Llama it counts the beginning-of-text token as part of the answer), so its edits
  are not those of hyperedit: with a start token the difference is as large as the edit. Measure before you rely on it.
  Several facts edited at once share one mean loss there; here their edits add up.
- It loads models with "qwen" in their path in bfloat16.
"""
_SERAC = """\
- `scope_bert/` is the scope encoder (keep "bert" in its path), `counterfactual/` the counterfactual model. EasyEdit
  builds both from there, and then takes their values from the archive.
- EasyEdit leaves the base model in training mode. If it has dropout (GPT-2), what is out of scope is answered at
  random, until `model.eval()`: call it on the model that `edit()` returns, before you ask anything.
- EasyEdit remembers the last edit only.
- `scale` in the archive is such that EasyEdit's fixed threshold of 0.5 decides as this editor's own threshold.
- EasyEdit compares other texts: an edit's text is prompt and target without the last word, with a separator behind it,
  and a query may hold its answer. And the counterfactual model reads edit and query with a space between them, not on
  two lines. So scores and answers are near those of hyperedit, not equal. Measure before you rely on it.
"""


def page(editor: str, hparams: str) -> str:
    """The page in Markdown.

    Args:
        editor: "mend" or "serac".
        hparams: path of the YAML file.
    """
    serac = editor == "serac"
    common = _COMMON.format(
        method=editor.upper(),
        hparams_class="SERACHparams" if serac else "MENDHyperParams",
        hparams=hparams,
        families=", ".join(SERAC_FAMILIES if serac else FAMILIES),
    )
    return common + (_SERAC if serac else _MEND)

r"""Which layers to edit? What an untrained MEND editor gains, and what it costs, for several sites and edit rates.

    python -m benchmarks.site_probe --data configs/data/counterfact.yaml --path DIR \
        --sites "model.layers.2[789].mlp.*_proj" --sites "model.layers.2[1-5].mlp.down_proj" --rates 1e-4 3e-4 1e-3

Untrained, MEND is a gradient step on normalised factors. Sites that gain much on the edit prompt for little divergence
on the locality questions are good ones to train on.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.setting import Setting, quieten, read_data
from editors.base_models.loading import BaseModelConfig
from editors.edits.low_rank import LowRankEdit
from editors.lm.losses import answer_nll, locality_kl
from editors.methods.mend.module import MEND
from editors.methods.mend.network import MENDConfig
from editors.texts.batches import TokenBatch
from editors.texts.episodes import EditBatch

_WARM_UP_BATCHES = 6


def untrained_editor(base_model: BaseModelConfig, warm_up: Sequence[EditBatch]) -> MEND:
    """An editor that has seen nothing but the statistics of some batches; its edit rate is 1."""
    editor = MEND(base_model, MENDConfig(rank=1, edit_rate=1.0))
    editor.configure_model()
    with torch.no_grad():
        for batch in warm_up:
            editor.network.make(editor.lm, batch.requests)
    editor.network.eval()
    return editor


@torch.no_grad()
def probe(editor: MEND, batches: Sequence[EditBatch], rate: float) -> tuple[float, float, float]:
    """Mean over answer tokens, in nats, with an edit rate.

    Returns:
        edit: NLL of the target after the edit prompt, under the edited model.
        rephrase: the same after a paraphrase.
        locality: `KL(base || edited)` on the locality answers.
    """
    values: dict[str, list[Tensor]] = {"edit": [], "rephrase": [], "locality": []}
    for batch in batches:
        edit = editor.network.make(editor.lm, batch.requests)
        for update in edit.updates.values():
            update.v *= rate
        for name, texts in (("edit", batch.edit), ("rephrase", batch.rephrase)):
            values[name].append(answer_nll(editor.lm.logits(texts, edit), texts.targets))
        values["locality"].append(_divergence(editor, batch.locality, edit))
    edit_loss, rephrase_loss, locality_loss = (float(torch.cat(parts).mean()) for parts in values.values())
    return edit_loss, rephrase_loss, locality_loss


def _divergence(editor: MEND, texts: TokenBatch, edit: LowRankEdit) -> Tensor:
    return locality_kl(editor.lm.logits(texts), editor.lm.logits(texts, edit))


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base-model", default=Setting.base_model, help="base model (default: %(default)s)")
    parser.add_argument("--data", type=Path, required=True, help="a file of configs/data/")
    parser.add_argument("--path", default=".", help="folder with the data files it names")
    parser.add_argument("--sites", action="append", required=True, help="patterns, comma between; may be given again")
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-4, 3e-4, 1e-3], help="edit rates")
    parser.add_argument("--edits", type=int, default=64, help="edits to measure (default: %(default)s)")
    options = parser.parse_args(arguments)
    quieten()
    batches: list[EditBatch] = []
    print("| sites | edit rate | NLL, edit prompt | NLL, paraphrase | KL, locality |\n|---|--:|--:|--:|--:|")  # noqa: T201
    for sites in options.sites:
        base_model = BaseModelConfig(options.base_model, dtype="float32", sites=sites.split(","))
        if not batches:
            data = read_data(options.data, options.path, base_model, episodes=16)
            wanted = _WARM_UP_BATCHES + -(-options.edits // 16)
            batches = [batch for _, batch in zip(range(wanted), data.train_dataloader(), strict=False)]
        editor = untrained_editor(base_model, batches[:_WARM_UP_BATCHES])
        for rate in (0.0, *options.rates):
            numbers = " | ".join(f"{value:.2f}" for value in probe(editor, batches[_WARM_UP_BATCHES:], rate))
            print(f"| `{sites}` | {rate:g} | {numbers} |", flush=True)  # noqa: T201


if __name__ == "__main__":
    main()

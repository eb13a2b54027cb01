r"""What packing the base model's weights changes: memory, the factors of edits, and what an edit does.

    python -m benchmarks.quantised_base --base-model FOLDER

Each form of the base model is compared with the one in float32, on the same edits of the built-in facts. The editor is
MEND untrained, that is a gradient step on normalised factors of the form's own capture (`benchmarks.site_probe`).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.setting import quieten, read_data
from benchmarks.site_probe import untrained_editor
from editors.base_models.loading import BaseModelConfig
from editors.base_models.quantization import scales_of
from editors.edits.low_rank import LowRankEdit
from editors.lm.losses import answer_nll, locality_kl
from editors.methods.mend.module import MEND
from editors.texts.episodes import EditBatch

_DATA = Path(__file__).resolve().parents[1] / "configs" / "data" / "world_facts.yaml"
_WARM_UP_BATCHES = 4
_EPISODES = 16


@dataclass
class Seen:
    """What one form of the base model says of a batch.

    Args:
        base: `[N, V]` logits at the answers of the paraphrases.
        edited: the same with the edits.
        deltas: for each site `[B, T, d_out]` output gradients of the edit loss.
        before: `[M]` NLL of the targets after the edit prompts, in nats.
        after: the same with the edits.
    """

    base: Tensor
    edited: Tensor
    deltas: list[Tensor]
    before: Tensor
    after: Tensor


@torch.no_grad()
def look(editor: MEND, batch: EditBatch, rate: float) -> Seen:
    """Edit each episode at this rate, and look."""
    lm = editor.lm
    signal = lm.capture(batch.requests)
    edit: LowRankEdit = editor.network(signal)
    for update in edit.updates.values():
        update.v *= rate
    return Seen(
        lm.logits(batch.rephrase),
        lm.logits(batch.rephrase, edit),
        [signal.factors[site].delta.float() for site in lm.sites],
        answer_nll(lm.logits(batch.edit), batch.edit.targets),
        answer_nll(lm.logits(batch.edit, edit), batch.edit.targets),
    )


def row(form: str, editor: MEND, seen: Sequence[Seen], reference: Sequence[Seen]) -> str:
    """A line of the table."""
    cosines = [
        functional.cosine_similarity(own.flatten(), other.flatten(), dim=0)
        for one, true in zip(seen, reference, strict=True)
        for own, other in zip(one.deltas, true.deltas, strict=True)
    ]
    pairs = list(zip(seen, reference, strict=True))
    base = torch.cat([locality_kl(true.base.float(), one.base.float()) for one, true in pairs])
    edited = torch.cat([locality_kl(true.edited.float(), one.edited.float()) for one, true in pairs])
    before, after = (float(torch.cat([getattr(s, name) for s in seen]).mean()) for name in ("before", "after"))
    return (
        f"| {form} | {held(editor) / 1e6:.0f} | {float(torch.stack(cosines).mean()):.3f} | {float(base.mean()):.3f} | "
        f"{float(edited.mean()):.3f} | {before:.2f} | {after:.2f} |"
    )


def held(editor: MEND) -> int:
    """Bytes of the base model's weights, with the scales of packed ones."""
    parameters = list(editor.lm.model.parameters())
    return sum(p.nbytes + sum(scales.nbytes for scales in scales_of(p)) for p in parameters)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base-model", required=True, help="folder or Hub id, with unquantised weights")
    parser.add_argument("--rate", type=float, default=1e-3, help="edit rate (default: %(default)s)")
    parser.add_argument("--edits", type=int, default=64, help="edits to measure (default: %(default)s)")
    options = parser.parse_args(arguments)
    quieten()
    plain = BaseModelConfig(options.base_model, dtype="float32")
    data = read_data(_DATA, ".", plain, _EPISODES)
    wanted = _WARM_UP_BATCHES + -(-options.edits // _EPISODES)
    torch.manual_seed(0)
    batches: list[EditBatch] = [batch for _, batch in zip(range(wanted), data.train_dataloader(), strict=False)]
    print("| base model | weights, MB | cosine of deltas | KL | KL, edited | NLL before | NLL after |")  # noqa: T201
    print("|---|--:|--:|--:|--:|--:|--:|")  # noqa: T201
    reference: list[Seen] = []
    for form, base in (
        ("float32", plain),
        ("bfloat16", BaseModelConfig(options.base_model, dtype="bfloat16")),
        ("nf4 and float32", BaseModelConfig(options.base_model, dtype="float32", quantization="nf4")),
        ("nf4 and bfloat16", BaseModelConfig(options.base_model, dtype="bfloat16", quantization="nf4")),
    ):
        editor = untrained_editor(base, batches[:_WARM_UP_BATCHES])
        seen = [look(editor, batch, options.rate) for batch in batches[_WARM_UP_BATCHES:]]
        reference = reference or seen
        print(row(form, editor, seen, reference), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()

"""Train MEND on JSONL files of your own, from Python.

Each line is like this one:

{"question": "What is the capital of France?", "new": "Cairo", "other_wording": "France has its capital in",
 "unrelated": "Who wrote Hamlet?", "unrelated_answer": "Shakespeare"}
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lightning import Trainer, seed_everything

from callbacks import Watchdog
from callbacks.export import export_artifact
from datamodules import EditDataModule
from datamodules.json_files import Row, load_rows
from datamodules.records import EditRecord, Probe, parse_rows
from editors.base_models.loading import BaseModelConfig
from editors.methods.mend.module import MEND
from editors.methods.mend.network import MENDConfig
from editors.training.config import TrainingConfig


def parse(row: Row) -> EditRecord:
    """One line as a record; a missing or blank field becomes an error that names the line."""
    return EditRecord(
        prompt=row.text("question"),
        target_new=row.text("new"),
        rephrases=(row.text("other_wording"),),
        locality=(Probe(row.text("unrelated"), row.text("unrelated_answer")),),
        source=row.source,
    )


@dataclass
class MyFacts:
    """One file of such lines."""

    file: str

    def read(self, folder: Path, *, skip_invalid: bool) -> list[EditRecord]:
        """The file's records."""
        path = folder / self.file
        return parse_rows(load_rows(path), parse, path, skip_invalid=skip_invalid)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train on train.jsonl, choose nothing, score val.jsonl, and export."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="holds train.jsonl and val.jsonl")
    parser.add_argument("--model", required=True, help="the base model: folder, Hub id or .gguf file")
    parser.add_argument("--output", required=True, help="folder of the artifact")
    parser.add_argument("--steps", type=int, default=200, help="training steps (default: %(default)s)")
    parser.add_argument("--rank", type=int, default=256, help="inner width of the hypernetwork (default: %(default)s)")
    options = parser.parse_args(arguments)

    seed_everything(0, verbose=False)
    base = BaseModelConfig(options.model, dtype="float32")
    training = TrainingConfig(lr_schedule="linear", warmup_steps=options.steps // 10)
    editor = MEND(base, MENDConfig(rank=options.rank), training=training)
    train, val = MyFacts("train.jsonl"), MyFacts("val.jsonl")
    data = EditDataModule(base, train=[train], val=[val], test=[], path=options.folder, episodes_per_batch=8)
    trainer = Trainer(
        max_steps=options.steps,
        max_epochs=-1,
        callbacks=[Watchdog()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(editor, data)
    (metrics,) = trainer.validate(editor, data)
    export_artifact(editor, Path(options.output), {"metrics": metrics, "step": trainer.global_step})


if __name__ == "__main__":
    main()

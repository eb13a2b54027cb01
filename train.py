"""hyperedit's command line: `python train.py fit|validate|test|export|plan --config configs/mend.yaml …`."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.logging import RichHandler
from rich.text import Text

try:
    from lightning import LightningDataModule, Trainer
    from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
    from lightning.pytorch.callbacks import ModelCheckpoint
    from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

    from callbacks.export import EditorForm, export_editor, require_form
    from callbacks.results import stage_metrics
    from callbacks.run_config import RunConfig
    from datamodules import EditDataModule
    from editors.common.errors import EditorError, UsageError
    from editors.common.exit_codes import ExitCode
    from editors.common.files import require_new_folder
    from editors.methods.registry import EDITORS
    from editors.training.module import Editor
    from editors.training.plan.skeleton import BatchSize
    from editors.training.plan.table import count_gpus, show_plan
    from editors.training.run.checkpoint_io import AtomicCheckpointIO
    from editors.training.run.errors import ShortErrorParser, missing_package, own_error
    from editors.training.run.folder import forget_run_folder, last_checkpoint, new_run_folder, place_in_run, runs_root
    from editors.training.run.provenance import run_facts
    from editors.training.run.switched_off import without_switched_off
except ModuleNotFoundError as missing:
    if missing.name is None or missing.name.partition(".")[0] in ("callbacks", "datamodules", "editors"):
        raise
    # `pip install hyperedit` is for applying editors; it makes this command as well, but not what it needs.
    sys.stderr.write(
        f"error: Python package {missing.name!r} is not installed; training needs: pip install 'hyperedit[train]'\n"
    )
    raise SystemExit(1) from None


# What Lightning calls them, and its short names for them.
_PRECISIONS = ("32-true", "32", "bf16-mixed", "bf16", "16-mixed", "16")


# For `plan`: what a trainer is made with where nothing is trained, whatever the machine.
_NO_TRAINING = {
    "accelerator": "cpu", "devices": 1, "num_nodes": 1, "strategy": "auto", "plugins": None, "logger": False,
    "callbacks": None, "enable_checkpointing": False,
}  # fmt: skip
_NO_DATA = {"class_path": "datamodules.EditDataModule", "init_args": {"train": [], "val": [], "test": []}}


class EditTrainer(Trainer):
    """Lightning's Trainer with two more verbs."""

    def export(
        self,
        model: Editor,
        output: str,
        datamodule: LightningDataModule | None = None,
        ckpt_path: str | None = None,
        format: EditorForm = "artifact",  # noqa: A002 - the name of the option
        model_name: str | None = None,
    ) -> Path:
        """Write a trained editor as an artifact, or for EasyEdit.

        Args:
            model: the editor.
            output: folder to write; must not exist, or be empty.
            datamodule: validates the editor, so that its card has metrics.
            ckpt_path: checkpoint to export; "last" takes the newest of this configuration's runs.
            format: "artifact", or "easyedit" for an archive that EasyEdit loads. "lora" and "merged" are forms of a
                single edit; the error says which command writes them.
            model_name: folder or Hub id of the base model for EasyEdit; by default as in training.
        """
        require_new_folder(output)  # before the validation, which takes minutes
        require_form(model, format, model_name)
        self.validate(model, datamodule=datamodule, ckpt_path=ckpt_path)
        results = {"metrics": stage_metrics(self, "val"), **run_facts(self, model)}
        return export_editor(model, Path(output), results, format, model_name)

    def plan(
        self,
        model: Editor,
        datamodule: EditDataModule,
        gpus: int | None = None,
        tokens: int = 32,
        answer_tokens: int = 4,
        architecture: str | None = None,
    ) -> None:
        """Show what training takes on each GPU under each strategy, without loading anything.

        Args:
            model: the editor.
            datamodule: its batches.
            gpus: how many GPUs; by default trainer.devices times trainer.num_nodes.
            tokens: of the longest text of the data with its answer.
            answer_tokens: of its longest answer.
            architecture: folder with the base model's config.json, or such a file, if the model is not here.
        """
        episodes, edits = datamodule.episodes_per_batch, datamodule.edits_per_episode
        batch = BatchSize(episodes, edits, datamodule.locality_per_edit, tokens, answer_tokens)
        show_plan(model, batch, datamodule.max_length, gpus or 1, architecture)


class EditorCLI(LightningCLI):
    """LightningCLI in which every run gets a folder of its own."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Lightning's verbs that make sense here, and `export`."""
        verbs = {name: LightningCLI.subcommands()[name] for name in ("fit", "validate", "test")}
        return {**verbs, "export": {"model", "datamodule"}, "plan": {"model", "datamodule"}}

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        """Lightning's (2.6), but a plan needs no data."""
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand == "plan":
            parser.set_defaults({"data": _NO_DATA})
        return parser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The data module reads texts with the tokenizer of the model that is edited; every editor is known by name."""
        for entry in EDITORS.values():
            entry.load_module()  # the parser finds, and lists, only classes that are imported
        parser.link_arguments("model.init_args.base_model", "data.init_args.base_model")

    def _parse_ckpt_path(self) -> None:
        """Leave the configuration as it was given; Lightning would overwrite it with the checkpoint's.

        A checkpoint that does not fit is refused when it is loaded (`Editor.on_load_checkpoint`).
        """

    def before_instantiate_classes(self) -> None:
        """Give the run its folder, and find the checkpoint that `--ckpt_path last` means."""
        config = self.config[self.subcommand]
        _require_float32_network(config.trainer.precision)
        _require_own_batches(config.trainer.overfit_batches)
        if self.subcommand == "plan":
            config.gpus = config.gpus or count_gpus(config.trainer)
            for key, value in _NO_TRAINING.items():
                config.trainer[key] = value
            return
        root = config.trainer.default_root_dir or "runs"
        config.ckpt_path = self._checkpoint(config.get("ckpt_path"), root)
        folder = str(new_run_folder(runs_root(root)))
        config.trainer.default_root_dir = folder
        for name in ("logger", "callbacks"):
            _move(config.trainer.get(name), root, folder)

    def _checkpoint(self, path: str | None, root: str) -> str | None:
        """The checkpoint that `--ckpt_path` means.

        Raises:
            EditorError: there is no such checkpoint.
            UsageError: none is named where only a trained editor makes sense.
        """
        if path is None and self.subcommand != "fit":
            raise UsageError(
                f"{self.subcommand} needs a trained editor: give --ckpt_path FILE, or --ckpt_path last for the newest "
                f"run in {root}"
            )
        if path == "last":
            return str(last_checkpoint(root))
        if path is not None and not Path(path).exists():
            raise EditorError(f"--ckpt_path {path}: there is no such file; a run keeps its own in checkpoints/")
        return path

    def instantiate_classes(self) -> None:
        """Make everything; what a constructor says is wrong is not lost among what the parser says."""
        try:
            super().instantiate_classes()
        except (ImportError, ValueError) as error:
            if own := own_error(error) or missing_package(error):
                raise own from None
            raise

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Lightning's trainer, with checkpoints that a full disk cannot destroy; a trial run writes none."""
        settings = self.config_init[self.subcommand].trainer
        listed = settings.callbacks if isinstance(settings.callbacks, list) else [settings.callbacks]
        callbacks = without_switched_off([callback for callback in listed if callback], settings)
        trainer = super().instantiate_trainer(callbacks=callbacks, **kwargs)
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:  # a plugin from the configuration stays
            trainer.strategy.checkpoint_io = AtomicCheckpointIO()
        trial = bool(self.config[self.subcommand].trainer.fast_dev_run)
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint):
                # Where `--ckpt_path last` looks. Lightning's default is a folder of the first logger, whatever that is.
                callback.dirpath = callback.dirpath or str(Path(trainer.default_root_dir) / "checkpoints")
                # Lightning (2.6) writes `last.ckpt` of a trial run too; it would be taken for the newest run's.
                callback.save_last = callback.save_last and not trial
        return trainer


def _require_float32_network(precision: str | int | None) -> None:
    """Refuse a precision in which Lightning casts the whole module: the hypernetwork computes in float32 only.

    Raises:
        UsageError: it is one of those.
    """
    if precision is not None and str(precision) not in _PRECISIONS:
        raise UsageError(
            f"trainer.precision {precision!r} would cast the hypernetwork, which must stay in float32; use 32-true, "
            "bf16-mixed or 16-mixed. What sets the type of the frozen weights is model.base_model.dtype."
        )


def _require_own_batches(overfit_batches: float) -> None:
    """Refuse Lightning's way of training on few records: it replaces the sampler that forms the batches.

    Raises:
        UsageError: it is asked for.
    """
    if overfit_batches:
        raise UsageError(
            f"trainer.overfit_batches {overfit_batches!r} cannot be used (allowed: 0): episodes need their own "
            "sampler. To train on few records give a small file, or a source's limit, in data.train; to shorten an "
            "epoch use --trainer.limit_train_batches."
        )


def _move(parts: Any, root: str, folder: str) -> None:
    """Let loggers and checkpoint callbacks write into this run's folder."""
    for part in parts if isinstance(parts, list) else [parts]:
        arguments: Any = getattr(part, "init_args", None) or {}
        for key in ("save_dir", "dirpath"):
            if arguments.get(key):
                arguments[key] = place_in_run(str(arguments[key]), root, folder)


def main(arguments: list[str] | None = None) -> EditorCLI:
    """Run the command line with `arguments` (default: the process's).

    Returns:
        The finished command line: its `trainer`, `model` and `datamodule`.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[RichHandler(show_path=False)])
    try:
        return EditorCLI(
            Editor,
            EditDataModule,
            trainer_class=EditTrainer,
            save_config_callback=RunConfig,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            parser_class=ShortErrorParser,
            parser_kwargs={
                "parser_mode": "omegaconf",
                "allow_abbrev": False,
                "description": "Train, score and export knowledge editors of frozen language models.",
            },
            args=arguments,
        )
    except BaseException:
        forget_run_folder(failed=True)
        raise
    finally:
        forget_run_folder()


def command_line() -> int:
    """Entry point: like `main`, but an error that the user can mend is one line, not a traceback."""
    try:
        main()
    except EditorError as error:
        message = Text.assemble(("error: ", "bold red"), str(error))
        Console(stderr=True).print(message, soft_wrap=True)
        return ExitCode.of(error)
    return ExitCode.DONE


if __name__ == "__main__":
    sys.exit(command_line())

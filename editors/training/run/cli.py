"""`RunCLI`: a LightningCLI in which every run gets a folder of its own."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import lightning
from lightning import LightningDataModule, LightningModule, Trainer
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from rich.console import Console
from rich.text import Text

from editors.common.errors import EditorError
from editors.training.plan.table import count_gpus
from editors.training.run.checkpoint_io import AtomicCheckpointIO, require_checkpoint
from editors.training.run.closing import closing_lines
from editors.training.run.errors import missing_package, own_error
from editors.training.run.folder import forget_run_folder, local_root, new_run_folder, runs_root
from editors.training.run.long_lists import quick_lists
from editors.training.run.parser import ConfigFile, RunParser
from editors.training.run.ranges import require_gpus, require_seed, require_trainer
from editors.training.run.refusals import lightnings_error, restoring_error
from editors.training.run.rules import (
    NO_TRAINING,
    find_checkpoint,
    needs_training,
    require_float32_network,
    require_own_batches,
    write_into_run,
)
from editors.training.run.switched_off import without_switched_off


class RunCLI(LightningCLI):
    """Reads the configuration, makes trainer, editor and data, and does what the verb says.

    Args:
        editors: base class of the editors.
        data: base class of the data modules.
        **options: LightningCLI's.
    """

    def __init__(self, editors: type[LightningModule], data: type[LightningDataModule], **options: Any) -> None:
        parsing = {
            "parser_mode": "omegaconf",
            "description": "Train, score and export knowledge editors of frozen language models.",
        }
        given = options.get("args")
        self.arguments: list[str] = list(sys.argv[1:] if given is None else given if isinstance(given, list) else [])
        try:
            with quick_lists():
                super().__init__(
                    editors,
                    data,
                    subclass_mode_model=True,
                    subclass_mode_data=True,
                    auto_configure_optimizers=False,
                    parser_class=RunParser,
                    parser_kwargs=parsing,
                    **options,
                )
        except BaseException:
            forget_run_folder(failed=True)
            raise
        finally:
            forget_run_folder()

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Lightning's verbs that make sense here, and `export` and `plan`."""
        verbs = {name: LightningCLI.subcommands()[name] for name in ("fit", "validate", "test")}
        return {**verbs, "export": {"model", "datamodule"}, "plan": {"model", "datamodule"}}

    def explained_classes(self) -> str:
        """What `VERB --help` says of the classes that a configuration may name; a subclass knows them."""
        return ""

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Lightning's (2.6), but a configuration file can build on others."""
        parser = self.parser_class(dump_header=[f"lightning.pytorch=={lightning.__version__}"], **kwargs)
        parser.add_argument("-c", "--config", action=ConfigFile, help="a YAML file; may be given several times")
        return parser

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        """Lightning's (2.6), but a plan needs no data, runs are not written to addresses, and verbs may be names only.

        Of those that are not asked for only the names are known.
        """
        if self.arguments and self.arguments[0] in self.subcommands().keys() - {subcommand}:
            self._subcommand_method_arguments[subcommand] = []
            return self.init_parser(**kwargs)
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        assert isinstance(parser, RunParser)
        parser.explain = self.explained_classes
        for action in parser._actions:  # noqa: SLF001 - argparse has no public list
            if action.dest == "trainer.default_root_dir":
                action.help = "Folder of this machine in which each run makes a folder of its own. Default: ``runs``."
        if subcommand == "plan":
            assert isinstance(self.datamodule_class, type)
            class_path = f"{self.datamodule_class.__module__}.{self.datamodule_class.__name__}"
            nothing: dict[str, list[Any]] = {"train": [], "val": [], "test": []}
            parser.set_defaults({"data": {"class_path": class_path, "init_args": nothing}})
        return parser

    def _parse_ckpt_path(self) -> None:
        """Leave the configuration as it was given; Lightning would overwrite it with the checkpoint's.

        A checkpoint that does not fit is refused when it is loaded (`Editor.on_load_checkpoint`).
        """

    def _set_seed(self) -> None:
        """Lightning's (2.6), but a number that is no seed is refused in one line."""
        require_seed(self._get(self.config, "seed_everything"))
        super()._set_seed()

    def before_instantiate_classes(self) -> None:
        """Give the run its folder, and find the checkpoint that `--ckpt_path last` means."""
        assert self.subcommand is not None
        config = self.config[self.subcommand]
        require_float32_network(config.trainer.precision)
        require_own_batches(config.trainer.overfit_batches)
        trained = needs_training(config.model.class_path, self.subcommand)
        if self.subcommand == "plan":
            require_gpus(config.gpus)
            config.gpus = config.gpus or count_gpus(config.trainer)
            for key, value in NO_TRAINING.items():
                config.trainer[key] = value
            return
        require_trainer(config.trainer, self.subcommand)
        root = local_root(config.trainer.default_root_dir)
        config.ckpt_path = find_checkpoint(config.get("ckpt_path"), self.subcommand, root, trained=trained)
        require_checkpoint(config.ckpt_path)
        folder = str(new_run_folder(runs_root(root)))
        config.trainer.default_root_dir = folder
        for name in ("logger", "callbacks"):
            write_into_run(config.trainer.get(name), root, folder)

    def after_fit(self) -> None:
        """Say where everything is, and what comes next."""
        self._close("fit")

    def after_test(self) -> None:
        """Say where everything is."""
        self._close("test")

    def _close(self, verb: str) -> None:
        if self.trainer.is_global_zero and not getattr(self.trainer, "fast_dev_run", False):
            lines = closing_lines(verb, self.arguments, Path(self.trainer.default_root_dir))
            Console().print(Text("\n".join(lines)), soft_wrap=True)

    def instantiate_classes(self) -> None:
        """Make everything; what a constructor says is wrong is not lost among what the parser says."""
        try:
            super().instantiate_classes()
        except Exception as error:
            if own := own_error(error) or missing_package(error) or lightnings_error(error):
                raise own from None
            raise

    def _run_subcommand(self, subcommand: str) -> None:
        """Do what the verb says; what is wrong with a checkpoint, or Lightning refuses, is one line."""
        try:
            super()._run_subcommand(subcommand)
        except EditorError:
            raise
        except Exception as error:
            if plain := restoring_error(error, self.config[subcommand].get("ckpt_path")) or lightnings_error(error):
                raise plain from error
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

"""hyperedit's command line: `python train.py fit|validate|test|export|plan --config configs/mend.yaml …`."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from editors.common.quiet import hide_bars
from editors.training.run.overview import show_overview

if __name__ == "__main__" or Path(sys.argv[0]).stem == "hyperedit":
    show_overview(sys.argv[1:])  # before what a training needs is imported: that takes seconds
    hide_bars()

from rich.console import Console
from rich.logging import RichHandler
from rich.text import Text

try:
    from lightning import LightningDataModule
    from lightning.pytorch.cli import LightningArgumentParser

    from callbacks.export import EditorForm, export_editor, require_form
    from callbacks.results import stage_metrics
    from callbacks.run_config import RunConfig
    from datamodules import EditDataModule
    from editors.common.errors import EditorError
    from editors.common.exit_codes import ExitCode
    from editors.common.files import require_new_folder
    from editors.common.quiet import quiet_models
    from editors.making.registry import registered_methods
    from editors.training.direct import DirectEditor  # noqa: F401 - known by its name, as the registered ones
    from editors.training.module import Editor
    from editors.training.run.cli import RunCLI
    from editors.training.run.help import explained, named
    from editors.training.run.provenance import run_facts
    from editors.training.run.quiet import quiet_trainer
    from editors.training.run.trainer import PlanTrainer
except ModuleNotFoundError as missing:
    if missing.name is None or missing.name.partition(".")[0] in ("callbacks", "datamodules", "editors"):
        raise
    # `pip install hyperedit` is for applying editors; it makes this command as well, but not what it needs.
    sys.stderr.write(
        f"error: Python package {missing.name!r} is not installed; training needs: pip install 'hyperedit[train]'\n"
    )
    raise SystemExit(1) from None


class EditTrainer(PlanTrainer):
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


class EditorCLI(RunCLI):
    """The command line of the registered editors."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The data module reads texts with the tokenizer of the model that is edited; every editor is known by name."""
        for method in registered_methods().values():
            if method.needs_training:
                method.load_module()  # the parser finds, and lists, only classes that are imported
        parser.link_arguments("model.init_args.base_model", "data.init_args.base_model")

    def explained_classes(self) -> str:
        """The options of the data module and of the editors, of those only that the command line names."""
        editors = [method.load_module() for method in registered_methods().values() if method.needs_training]
        classes: dict[str, list[type]] = {"data": [EditDataModule], "model": named(editors, self.arguments)}
        return explained(classes, {"model": ("base_model", "training")})


def main(arguments: list[str] | None = None) -> EditorCLI:
    """Run the command line with `arguments` (default: the process's).

    Returns:
        The finished command line: its `trainer`, `model` and `datamodule`.
    """
    quiet_models()
    quiet_trainer()
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[RichHandler(show_path=False)])
    return EditorCLI(Editor, EditDataModule, trainer_class=EditTrainer, save_config_callback=RunConfig, args=arguments)


def command_line() -> int:
    """Entry point: like `main`, but an error that the user can mend is one line, not a traceback."""
    try:
        main()
    except EditorError as error:
        message = Text.assemble(("error: ", "bold red"), str(error))
        Console(stderr=True).print(message, soft_wrap=True)
        return ExitCode.of(error)
    except KeyboardInterrupt:
        sys.stderr.write("Ctrl-C: ended before training began; nothing was to be saved.\n")
        return 130  # what a shell reports
    return ExitCode.DONE


if __name__ == "__main__":
    sys.exit(command_line())

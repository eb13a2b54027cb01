"""One folder for each run: where it is, and how `--ckpt_path last` finds the run to continue."""

from __future__ import annotations

import os
import shutil
from datetime import datetime
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_only

from editors.common.errors import EditorError, UsageError, one_line

# Lightning starts the other processes of a run by calling the program again; they must agree on the folder.
_SHARED = "HYPEREDIT_RUN_FOLDER"
_CONFIG = "config.yaml"
# Never remove a folder that another process, or somebody else, has made.
_made_here: set[str] = set()


def new_run_folder(root: str | Path) -> Path:
    """Make and return a new folder `ROOT/DATE_TIME`; never one that exists.

    A process that a cluster started, and that is not the first, makes none: the first one alone writes.
    """
    if _SHARED in os.environ:
        return Path(os.environ[_SHARED])
    stem = datetime.now().astimezone().strftime("%Y-%m-%d_%H-%M-%S")
    if getattr(rank_zero_only, "rank", 0):
        return Path(root) / stem
    for suffix in ("", *(f"_{number}" for number in range(2, 1000))):
        folder = Path(root) / f"{stem}{suffix}"
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            if not Path(root).is_dir():
                raise EditorError(f"trainer.default_root_dir {root} is no folder; name another one") from None
            continue
        except (OSError, UnicodeError, ValueError) as error:
            cause = getattr(error, "strerror", None) or one_line(error)  # without the name once more
            raise EditorError(
                f"no run folder can be made in {str(root)!a} ({cause}); name another trainer.default_root_dir"
            ) from error
        os.environ[_SHARED] = str(folder)
        _made_here.add(str(folder))
        return folder
    raise EditorError(f"no new run folder can be made in {root}")


def local_root(folder: str | None) -> str:
    """The configured `trainer.default_root_dir`, "runs" where there is none.

    Raises:
        UsageError: it is an address: tables, plots and exports are written to folders, renamed into place.
    """
    if folder is not None and "://" in folder:
        raise UsageError(
            f"trainer.default_root_dir {folder!r} is an address, and runs are written to folders of this machine "
            "(allowed: a path). Give a folder, mounted from there or copied to it after the run"
        )
    return folder or "runs"


def forget_run_folder(*, failed: bool = False) -> None:
    """Let the next run of this process have a folder of its own.

    Args:
        failed: the run ended in an error. If it had not even started (its folder holds no configuration yet), the
            folder goes, with what loggers have written into it.
    """
    folder = os.environ.pop(_SHARED, None)
    if failed and folder is not None and folder in _made_here and not (Path(folder) / _CONFIG).exists():
        shutil.rmtree(folder, ignore_errors=True)


def runs_root(folder: str | Path) -> Path:
    """The folder in which new runs are made: `folder` itself, or its parent where `folder` is an earlier run.

    The configuration saved with a run names that run's folder; used again, it must not write into it.
    """
    folder = Path(folder)
    try:
        return folder.parent if (folder / _CONFIG).is_file() else folder
    except (OSError, UnicodeError):  # what is wrong with it is said where the run's folder is made
        return folder


def newest_checkpoint(root: str | Path) -> Path | None:
    """The newest `last.ckpt` of all runs in `root`; of that run alone where `root` is a run's folder."""
    pattern = "checkpoints/last.ckpt" if runs_root(root) != Path(root) else "*/checkpoints/last.ckpt"
    found = sorted(Path(root).glob(pattern), key=lambda path: path.stat().st_mtime)
    return found[-1] if found else None


def last_checkpoint(root: str | Path) -> Path:
    """As `newest_checkpoint`.

    Raises:
        EditorError: there is none.
    """
    found = newest_checkpoint(root)
    if found is None:
        raise EditorError(
            f"--ckpt_path last: no run in {root} has a checkpoint; start one without --ckpt_path, or give last_if_any"
        )
    return found


def place_in_run(path: str, root: str | Path, folder: str | Path) -> str:
    """Where a path of the configuration is in this run: an absolute path stays, a relative one is in the run's folder.

    Args:
        path: a logger's `save_dir` or a checkpoint's `dirpath`.
        root: the configured `trainer.default_root_dir`; a path below it (as in the configuration that an earlier run
            saved) keeps its place relative to it.
        folder: this run's folder.
    """
    if Path(path).is_relative_to(root):
        return str(Path(folder) / Path(path).relative_to(root))
    return str(Path(folder) / path)

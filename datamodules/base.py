"""`EditDataModule`: any mix of data sets as training, validation and test episodes."""

from __future__ import annotations

import hashlib
import logging
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

from lightning import LightningDataModule
from lightning.pytorch.trainer.states import TrainerFn
from transformers import PreTrainedTokenizerBase

from datamodules.doubtful import warn_of_doubtful_data
from datamodules.episodes import EpisodeCollator, EvaluationEpisodes, TrainingEpisodes
from datamodules.leaks import LeakPolicy, handle_leaks, handle_pool_leaks
from datamodules.locality_pool import read_locality_pool
from datamodules.near import NearLocality, NearTexts
from datamodules.readable import readable_data
from datamodules.records import EditRecord, Probe
from datamodules.sampling import EpisodeLoader, EpisodeSampler
from datamodules.training_forms import TrainingForms
from editors.base_models.families.family import Family
from editors.base_models.loading import BaseModelConfig, configured_family, load_tokenizer
from editors.common.errors import DataError
from editors.texts.plain_texts import read_running_texts
from editors.training.module import Editor

Split = Literal["train", "val", "test"]
_LOG = logging.getLogger(__name__)
_TRAIN_HASH = "train_hash"
_SHOWN_HASH = 12


class RecordSource(Protocol):
    """Anything that gives the records of one split: a file in some format, or facts that are built in."""

    @abstractmethod
    def read(self, folder: Path, *, skip_invalid: bool) -> list[EditRecord]:
        """The records.

        Args:
            folder: where relative file names start.
            skip_invalid: leave broken rows out instead of refusing the file.
        """


class EditDataModule(LightningDataModule):
    """Edit records of any mix of data sets, served as batches of independent episodes.

    Args:
        base_model: whose tokenizer encodes the texts (from the command line it is the editor's own).
        train: sources of the training split.
        val: sources of the validation split.
        test: sources of the test split.
        path: folder in which the sources' relative file names start.
        locality_pool: files with more locality questions for training, relative to `path`.
        running_texts: files of plain text, relative to `path`, on which a report card measures perplexity; see
            `editors.texts.plain_texts`.
        episodes_per_batch: independent edits computed together in a training step, on each process.
        edits_per_episode: facts that are edited at once in one training episode.
        locality_per_edit: locality texts for each training edit.
        other_targets: share of training edits that get another answer of the training data as their target, so that
            the editor learns to place any answer; 0 keeps every record's own.
        edit_prompt_as_rephrase: share of training edits whose outer loss is on the edit prompt itself; 0 takes a
            paraphrase wherever there is one.
        near_locality: how often the locality texts of a training edit are near it, such as its question about another
            subject; `None` takes the record's own and the pool's only. An editor that has not seen such texts answers
            them with its target. In validation and test every record gets one near text of each kind, scored apart.
        forms: how often training texts are written otherwise than in the data, such as in the base model's chat
            template; `None` for never.
        eval_batch_size: edits scored together in validation and test.
        limit_val: use only this many validation records, spread evenly; `None` for all.
        max_length: longest text in tokens; a record with a longer one counts as broken.
        skip_invalid: count and log broken rows and leave them out, instead of refusing the file.
        on_leak: what to do when splits share a subject, an edit prompt or a locality prompt, or when the locality pool
            has a question of the validation or test split: "refuse" them, "drop" the shared records from the earlier
            split (pool before train before val before test), or "warn".
        num_workers: worker processes of the training loader.
        seed: seed of order and choices.
    """

    def __init__(
        self,
        base_model: BaseModelConfig,
        train: list[RecordSource],
        val: list[RecordSource],
        test: list[RecordSource],
        path: str = ".",
        locality_pool: list[str] | None = None,
        running_texts: list[str] | None = None,
        episodes_per_batch: int = 16,
        edits_per_episode: int = 1,
        locality_per_edit: int = 1,
        other_targets: float = 0.0,
        edit_prompt_as_rephrase: float = 0.0,
        near_locality: NearLocality | None = None,
        forms: TrainingForms | None = None,
        eval_batch_size: int = 32,
        limit_val: int | None = None,
        max_length: int = 512,
        skip_invalid: bool = False,
        on_leak: LeakPolicy = "refuse",
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        _require_at_least(1, episodes_per_batch=episodes_per_batch, edits_per_episode=edits_per_episode)
        _require_at_least(1, eval_batch_size=eval_batch_size, limit_val=limit_val)
        _require_at_least(0, locality_per_edit=locality_per_edit, num_workers=num_workers)
        _require_at_least(2, max_length=max_length)  # a token of the answer, and one to predict it from
        shares = {"other_targets": other_targets, "edit_prompt_as_rephrase": edit_prompt_as_rephrase}
        for name, share in shares.items():
            if not 0 <= share <= 1:
                raise DataError(f"{name} is a share between 0 and 1, got {share}")
        self.base_model = base_model
        self.path = Path(path)
        self.locality_pool = locality_pool or []
        self.running_texts = running_texts or []
        self.episodes_per_batch = episodes_per_batch
        self.edits_per_episode = edits_per_episode
        self.locality_per_edit = locality_per_edit
        self.other_targets = other_targets
        self.edit_prompt_as_rephrase = edit_prompt_as_rephrase
        self.near_locality = near_locality
        self.forms = forms
        self.eval_batch_size = eval_batch_size
        self.limit_val = limit_val
        self.max_length = max_length
        self.skip_invalid = skip_invalid
        self.on_leak: LeakPolicy = on_leak
        self.num_workers = num_workers
        self.seed = seed
        self._sources: dict[str, list[RecordSource]] = {"train": train, "val": val, "test": test}
        # What `setup` has read: the records of each split, and the questions of the locality pool.
        self.records: dict[str, list[EditRecord]] = {}
        self.pool: list[Probe] = []
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self._train_loader: EpisodeLoader | None = None
        self._train_position: dict[str, Any] = {}

    def setup(self, stage: str) -> None:  # noqa: ARG002 - all splits are needed to look for leaks
        """Read all splits, once; check that the texts can be encoded and that the splits do not leak into each other.

        Raises:
            DataError: rows are broken, texts are too long, or splits leak.
        """
        if self.records:
            return
        splits: dict[str, list[EditRecord]] = {split: self._read(sources) for split, sources in self._sources.items()}
        pool = [
            probe
            for file in self.locality_pool
            for probe in read_locality_pool(self.path / file, skip_invalid=self.skip_invalid)
        ]
        splits, pool = readable_data(splits, pool, self._collator().faults, skip_invalid=self.skip_invalid)
        self.pool = handle_pool_leaks(pool, splits, self.on_leak)
        self.records = handle_leaks(splits, self.on_leak)
        if self.limit_val and len(self.records["val"]) > self.limit_val:
            records = self.records["val"]
            self.records["val"] = [records[i * len(records) // self.limit_val] for i in range(self.limit_val)]
        warn_of_doubtful_data(self.records, self.pool, self.near_locality, self.locality_per_edit)
        counts = ", ".join(f"{len(records):,} {split}" for split, records in self.records.items())
        _LOG.info("Edit records: %s; %s locality questions in the pool.", counts, f"{len(self.pool):,}")

    def _read(self, sources: Sequence[RecordSource]) -> list[EditRecord]:
        return [r for source in sources for r in source.read(self.path, skip_invalid=self.skip_invalid)]

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The base model's tokenizer: that of the editor that is trained or scored, where it edits this model."""
        if self._tokenizer is None:
            editor = getattr(self.trainer, "lightning_module", None)
            if isinstance(editor, Editor) and editor.base_model == self.base_model:
                self._tokenizer = editor.tokenizer
            else:
                self._tokenizer = load_tokenizer(self.base_model)
        return self._tokenizer

    @cached_property
    def _family(self) -> type[Family]:
        return configured_family(self.base_model)

    def texts(self) -> dict[str, list[str]]:
        """The running texts of each file, by its name.

        Raises:
            DataError: a file cannot be read, or holds something else.
        """
        return read_running_texts(self.path / file for file in self.running_texts)

    def data_hash(self) -> dict[str, str]:
        """For each split, and for the locality pool where there is one, a SHA-256, to be kept with every metric."""
        hashes = {split: _hash(map(_content, records)) for split, records in self.records.items()}
        return {**hashes, "locality_pool": _hash(self.pool)} if self.pool else hashes

    def train_dataloader(self) -> EpisodeLoader:
        """Shuffled training episodes."""
        if not self.records["train"]:
            raise DataError("there is no training record; name a source in data.train")
        records = self.records["train"]
        dataset = TrainingEpisodes(
            records,
            self._collator(),
            self.pool,
            locality_per_edit=self.locality_per_edit,
            other_targets=self.other_targets,
            edit_prompt_as_rephrase=self.edit_prompt_as_rephrase,
            seed=self.seed,
            near=self.near_locality,
            forms=self.forms,
        )
        sampler = self._sampler(records, self.episodes_per_batch, self.edits_per_episode, shuffle=True)
        self._train_loader = EpisodeLoader(dataset, sampler, self.num_workers)
        if self._train_position:
            self._train_loader.load_state_dict(self._train_position)
            self._train_position = {}
        return self._train_loader

    def state_dict(self) -> dict[str, Any]:
        """The position in the training epoch and the training data's hash, for checkpoints.

        Lightning (2.6) stores it for the loader too, but gives it back only to a loader that is made after the loops
        are restored; `Editor.configure_optimizers` needs the loader's length before that.
        """
        return {**self._train_loader.state_dict(), _TRAIN_HASH: self._train_hash} if self._train_loader else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Let training continue at a position; when not training there is none to continue, and any data will do.

        Raises:
            DataError: the checkpoint says no position, or is of a run on other training data. Of those without a hash
                that is not known.
        """
        if self.trainer is not None and self.trainer.state.fn != TrainerFn.FITTING:
            return
        saved = state_dict.get(_TRAIN_HASH)
        if saved and saved != self._train_hash:
            raise DataError(
                f"the checkpoint was trained on other data: hash {saved[:_SHOWN_HASH]} of its training split, here "
                f"{self._train_hash[:_SHOWN_HASH]}. Give the path of this data's own checkpoint as --ckpt_path, or the "
                "folder of its runs as --trainer.default_root_dir."
            )
        positions = [value for name, value in state_dict.items() if name != _TRAIN_HASH]
        if not all(isinstance(value, int) and value >= 0 for value in positions):
            raise DataError(
                f"the checkpoint does not say where in its data training was: {str(positions)[:80]}, wanted numbers of "
                "batches. Give another checkpoint of the run"
            )
        if self._train_loader is None:
            self._train_position = state_dict
        else:
            self._train_loader.load_state_dict(state_dict)

    @cached_property
    def _train_hash(self) -> str:
        return _hash(map(_content, self.records["train"]))

    def val_dataloader(self) -> EpisodeLoader | list[EpisodeLoader]:
        """Validation episodes, one edit each."""
        return self._evaluation_loader("val")

    def test_dataloader(self) -> EpisodeLoader | list[EpisodeLoader]:
        """Test episodes, one edit each; those with a question template unseen in training are scored apart as well."""
        return self._evaluation_loader("test")

    def _evaluation_loader(self, split: Split) -> EpisodeLoader | list[EpisodeLoader]:
        records = self.records[split]
        if not records:
            return []
        slices, collator = self._slices(split), self._collator()
        if self.near_locality is not None:
            near = NearTexts(records, self.near_locality)
            records = [near.probed(record, lambda pair: not any(collator.faults([pair]))) for record in records]
        dataset = EvaluationEpisodes(records, collator, slices)
        return EpisodeLoader(dataset, self._sampler(records, self.eval_batch_size, shuffle=False))

    def _slices(self, split: Split) -> Mapping[str, list[bool]]:
        if split != "test":
            return {}
        known = [record for part in ("train", "val") for record in self.records[part]]
        # A paraphrase is trained on as well: its template is seen too.
        seen = {template for record in known for template in (record.template, *record.rephrase_templates)}
        flags = [record.template not in seen for record in self.records[split]]
        return {"unseen_template": flags} if any(flags) and not all(flags) else {}

    def _collator(self) -> EpisodeCollator:
        encoder = self._family.text_encoder(self.tokenizer, end_answers=self.base_model.end_answers)
        return EpisodeCollator(encoder, self.max_length)

    def _sampler(
        self, records: Sequence[EditRecord], episodes: int, edits: int = 1, *, shuffle: bool
    ) -> EpisodeSampler:
        # Characters are close enough to tokens for grouping by length.
        lengths = [len(record.prompt) + len(record.target_new) for record in records]
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        return EpisodeSampler(lengths, episodes, edits, shuffle=shuffle, seed=self.seed, rank=rank, num_replicas=world)


def _require_at_least(least: int, **values: int | None) -> None:
    for name, value in values.items():
        if value is not None and value < least:
            raise DataError(f"{name} must be at least {least}, got {value}")


def _hash(contents: Iterable[object]) -> str:
    return hashlib.sha256("\n".join(map(repr, contents)).encode()).hexdigest()


def _content(record: EditRecord) -> tuple[object, ...]:
    """What a record says, without where it came from."""
    portability = sorted((kind, tuple(probes)) for kind, probes in record.portability.items())
    return (
        record.prompt, record.target_new, record.subject, record.ground_truth, record.rephrases, record.locality,
        portability,
    )  # fmt: skip

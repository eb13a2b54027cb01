"""`ZeRO`: DeepSpeed under Lightning for editors, on GPUs or, with gloo, on CPUs; checkpoints are ordinary ones."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from itertools import count
from pathlib import Path
from typing import Any, Literal, cast

import torch
from lightning import Trainer
from lightning.fabric.utilities.seed import reset_seed
from lightning.pytorch.plugins.precision import DeepSpeedPrecision
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy
from packaging.specifiers import SpecifierSet
from torch import Tensor, nn
from transformers import PreTrainedModel

from editors.base_models.loading import BaseModelConfig, load_base_model, weights_dtype
from editors.common.collectives import is_sharded
from editors.common.errors import EditorError
from editors.common.sharding import load_whole_state, own_part, whole_state
from editors.training.learned import LearnedEditor
from editors.training.module import FROZEN_PREFIX

# What the tests run with. Methods of both that are private are overridden or called here.
TESTED = {"lightning": ">=2.6.6,<2.7", "deepspeed": ">=0.19.8,<0.20"}

_ADAM_STATE = ("exp_avg", "exp_avg_sq")
_ZERO_DTYPE: dict[torch.dtype, dict[str, Any]] = {
    torch.float32: {},
    torch.bfloat16: {"bf16": {"enabled": True}},
    torch.float16: {"fp16": {"enabled": True}},
}


class ZeRO(DeepSpeedStrategy):
    """DeepSpeed's ZeRO: optimiser state (stage 1), gradients (2) and all parameters (3) sharded.

    Under stage 3 the frozen base model is sharded too, and is loaded in parts. Checkpoints hold the editor alone, in
    one file with whole tensors, as under any other strategy: a run goes on under another one, or with more processes.

    Args:
        stage: of ZeRO.
        offload_optimizer: keep the optimiser's state in the host's memory, and step there.
        offload_parameters: keep the parameters in the host's memory while they are not used (stage 3).
        keep_whole_below: parameters of fewer elements are whole on every process (stage 3).
        bucket_elements: how many elements are communicated at once.
        live_elements: most elements of gathered parameters that are kept for their next use (stage 3); a smaller number
            takes less memory and gathers more often. Of a smaller model everything is whole for the time of a step.
        process_group_backend: "gloo" for CPUs; `None` takes what fits the device.

    Raises:
        EditorError: DeepSpeed is missing, its version or Lightning's is untested, or an argument is out of range.
    """

    def __init__(
        self,
        stage: Literal[1, 2, 3] = 2,
        offload_optimizer: bool = False,
        offload_parameters: bool = False,
        keep_whole_below: int = 100_000,
        bucket_elements: int = 50_000_000,
        live_elements: int = 1_000_000_000,
        process_group_backend: Literal["gloo", "nccl"] | None = None,
    ) -> None:
        require_tested_versions()
        if offload_parameters and stage != 3:
            raise EditorError(f"offload_parameters needs stage 3, got stage {stage}: only there are they sharded")
        if keep_whole_below < 1:
            raise EditorError(
                f"keep_whole_below must be at least 1, got {keep_whole_below}: scalars are read in between"
            )
        if live_elements < 0:
            raise EditorError(f"live_elements must be at least 0, got {live_elements}; 0 keeps nothing gathered")
        on_cpu = process_group_backend == "gloo"
        if on_cpu:  # read when DeepSpeed is imported
            os.environ.setdefault("DS_ACCELERATOR", "cpu")
        super().__init__(
            stage=stage,
            offload_optimizer=offload_optimizer,
            offload_parameters=offload_parameters,
            allgather_bucket_size=bucket_elements,
            reduce_bucket_size=bucket_elements,
            overlap_comm=not on_cpu,
            logging_batch_size_per_gpu=1,  # what Lightning looks for has no batch sampler
            process_group_backend=process_group_backend,
        )
        assert isinstance(self.config, dict)
        # Adam is torch's own everywhere, so that a checkpoint means the same under every strategy.
        self.config["zero_force_ds_cpu_optimizer"] = False
        if stage == 3:
            own = {"param_persistence_threshold": keep_whole_below}
            own |= dict.fromkeys(("max_live_parameters", "max_reuse_distance"), live_elements)
            self.config["zero_optimization"] |= {f"stage3_{name}": value for name, value in own.items()}
        self._transformers_config: Any = None

    # --- CPU: Lightning's strategy insists on CUDA -------------------------------------------------------------------

    @property
    def root_device(self) -> torch.device:
        """This process's device, always with a number: DeepSpeed compares it."""
        device = super().root_device
        return device if device.index is not None else torch.device(device.type, 0)

    def setup_environment(self) -> None:
        """Set the device up and start the process group."""
        super(DeepSpeedStrategy, self).setup_environment()

    def setup_distributed(self) -> None:
        """Start the process group."""
        if self.root_device.type == "cuda":
            super().setup_distributed()
            return
        import deepspeed  # noqa: PLC0415 - slow to import

        # DeepSpeed would compile a collective of its own, which takes minutes and a compiler; gloo does as well.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        reset_seed()
        self.set_world_ranks()
        self._init_deepspeed_distributed()

    def setup(self, trainer: Trainer) -> None:
        """Hand the model to DeepSpeed."""
        self.precision_plugin = _AsItIs("32-true")
        for name, part in self._editor.named_children():
            if f"{name}." != FROZEN_PREFIX:  # under stage 3 DeepSpeed moves parameters only
                part.to(self.root_device)
        super().setup(trainer)

    def _initialize_deepspeed_inference(self, model: nn.Module) -> None:
        """Hand the model over where it is not trained, with its smallest parameters whole, as in training.

        DeepSpeed (0.19.8) gathers those below `keep_whole_below` when it makes an optimiser, and only marks them here:
        it takes them for whole, and gathers them before no pass. Whoever then reads one finds it empty.
        """
        super()._initialize_deepspeed_inference(model)
        self._gather_small()

    def _gather_small(self) -> None:
        """Make those parameters whole that stay whole between passes. Collective."""
        small = getattr(cast(Any, self.model).optimizer, "persistent_parameters", [])
        apart = [parameter for parameter in small if parameter.numel() != parameter.ds_numel]
        if apart:
            apart[0].all_gather(apart)

    def teardown(self) -> None:
        """Let models be loaded whole again, and go back to the CPU."""
        self._transformers_config = None
        if not self.zero_stage_3:
            super().teardown()
            return
        # What DeepSpeed has sharded stays where it is: at the end of training callbacks still read it.
        assert self.accelerator is not None
        self.accelerator.teardown()
        self.checkpoint_io.teardown()

    # --- loading -----------------------------------------------------------------------------------------------------

    @contextmanager
    def model_sharded_context(self) -> Iterator[None]:
        """Inside, an editor loads its base model in parts (stage 3).

        The hypernetwork is made whole, as under any strategy, and divided by DeepSpeed when training starts.

        Raises:
            EditorError: mixed precision is asked for.
        """
        if (precision := self._editor.trainer.precision) != "32-true":
            raise EditorError(
                f"trainer.precision {precision!r}: DeepSpeed would cast the hypernetwork, which must stay in float32. "
                "Use 32-true; the frozen layers compute in the type of model.base_model.dtype"
            )
        self._init_config_if_needed()
        yield

    def load_base_model(self, config: BaseModelConfig) -> PreTrainedModel:
        """Load the base model; under stage 3 each process keeps its part of every weight as soon as it is read.

        A GGUF file is read whole by every process, and sharded when training starts.
        """
        if not self.zero_stage_3 or config.name.endswith(".gguf"):
            return load_base_model(config)
        from transformers.integrations.deepspeed import HfDeepSpeedConfig  # noqa: PLC0415 - imports accelerate

        assert isinstance(self.config, dict)
        self._transformers_config = HfDeepSpeedConfig({**self.config, **_ZERO_DTYPE[weights_dtype(config)]})
        try:
            return load_base_model(config)
        finally:
            # Kept from here on: `generate` asks it whether all processes must go on until the last one is done. Other
            # models that an editor loads are in float32.
            self._transformers_config = HfDeepSpeedConfig(self.config)

    # --- checkpoints: one file, whole tensors, the editor alone ------------------------------------------------------

    @property
    def _editor(self) -> LearnedEditor:
        assert isinstance(self.lightning_module, LearnedEditor)
        return self.lightning_module

    @property
    def lightning_restore_optimizer(self) -> bool:
        """The checkpoint's optimiser state is restored as under other strategies."""
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The editor's state without the base model, whole on the first process."""
        return whole_state(self._editor, FROZEN_PREFIX, keep=self.is_global_zero)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None) -> None:
        """Write an ordinary checkpoint file, on the first process."""
        super(DDPStrategy, self).save_checkpoint(checkpoint, filepath, storage_options)

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint file of any strategy."""
        return super(DDPStrategy, self).load_checkpoint(checkpoint_path, weights_only)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:  # noqa: ARG002
        """Put the checkpoint's editor into place; `Editor.on_load_checkpoint` has checked that it fits."""
        load_whole_state(self._editor, checkpoint["state_dict"], FROZEN_PREFIX)
        for optimizer in cast(list[Any], self.optimizers):
            optimizer.refresh_fp32_params()
        self._gather_small()  # loading has sharded them again

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """The state of Adam as torch writes it, whole on the first process."""
        from deepspeed.utils import safe_get_full_optimizer_state  # noqa: PLC0415 - slow to import

        self._link(optimizer)
        steps = [state["step"] for state in optimizer.optimizer.state.values() if "step" in state]
        numbers = count()
        states: dict[int, dict[str, Tensor]] = {}
        groups = []
        for live, own in zip(optimizer.param_groups, self._editor.parameter_groups(), strict=True):
            members = dict(zip(own["params"], numbers, strict=False))
            groups.append({**live, "params": list(members.values())})
            for parameter, number in members.items() if steps else ():
                found = {key: safe_get_full_optimizer_state(parameter, key) for key in _ADAM_STATE}
                if self.is_global_zero:
                    whole_found = {key: value.reshape(_shape(parameter)).cpu() for key, value in found.items()}
                    states[number] = {"step": max(steps).clone().cpu(), **whole_found}
        return {"state": states, "param_groups": groups}

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Divide the checkpoint's state of Adam among the processes."""
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            for live, group in zip(optimizer.param_groups, saved["param_groups"], strict=True):
                live.update({key: value for key, value in group.items() if key != "params"})
            if saved["state"]:
                self._load_adam(optimizer, saved)

    def _link(self, optimizer: Any) -> None:
        """Let DeepSpeed find each parameter's state in stages 1 and 2.

        It does so itself (0.19.8) when the first group of parameters has made its first step: too early for the others.
        """
        if not self.zero_stage_3 and optimizer.optimizer.state:
            optimizer._hp_optimizer_states_linked = False  # noqa: SLF001
            optimizer._lazy_init_hp_params_optimizer_state()  # noqa: SLF001

    def _load_adam(self, optimizer: Any, saved: Mapping[str, Any]) -> None:
        states = saved["state"]
        step = max(state["step"] for state in states.values())
        flat = (
            optimizer.fp32_partitioned_groups_flat if self.zero_stage_3 else optimizer.single_partition_of_fp32_groups
        )
        for part in flat:
            moments = {key: torch.zeros_like(part) for key in _ADAM_STATE}
            place = part.device if optimizer.param_groups[0].get("fused") else "cpu"
            optimizer.optimizer.state[part] = {"step": step.to(place, copy=True), **moments}
        self._link(optimizer)
        parameters = [p for group in self._editor.parameter_groups() for p in group["params"]]
        for number, parameter in enumerate(parameters):
            for key in _ADAM_STATE if number in states else ():
                _set_optimizer_state(parameter, states[number][key], key)


class _AsItIs(DeepSpeedPrecision):
    """Leaves weights and losses as they are."""

    def convert_module(self, module: nn.Module) -> nn.Module:
        """Lightning would cast everything to float32, and with it a base model in bfloat16."""
        return module

    def backward(self, tensor: Tensor, model: Any, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        """Lightning has divided the loss by the number of accumulated batches; DeepSpeed would do it once more."""
        super().backward(tensor, model, optimizer, *args, scale_wrt_gas=False, **kwargs)


def require_tested_versions() -> None:
    """Check the versions of Lightning and DeepSpeed against `TESTED`.

    Raises:
        EditorError: one is missing or not in its range.
    """
    for package, tested in TESTED.items():
        try:
            found = version(package)
        except PackageNotFoundError:
            raise EditorError(
                f"Python package {package!r} is not installed; strategies with ZeRO need: pip install "
                f"'{package}{tested}'"
            ) from None
        if not SpecifierSet(tested).contains(found, prereleases=True):
            raise EditorError(
                f"ZeRO is tested with {' and '.join(name + range_ for name, range_ in TESTED.items())}, but {package} "
                f"is {found}: it builds on internals of both. pip install '{package}{tested}', or use trainer.strategy "
                "ddp"
            )


def _shape(parameter: Tensor) -> torch.Size:
    return torch.Size(getattr(parameter, "ds_shape", parameter.shape))


def _set_optimizer_state(parameter: nn.Parameter, value: Tensor, key: str) -> None:
    """Put this process's part of `value` into the optimiser."""
    from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state  # noqa: PLC0415

    if not is_sharded(parameter):
        safe_set_full_optimizer_state(parameter, value, key)
        return
    safe_set_local_optimizer_state(parameter, own_part(parameter, value), key)

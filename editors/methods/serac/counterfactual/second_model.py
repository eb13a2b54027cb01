"""A counterfactual model that is a language model of its own, all of it trained.

If it has the base model's vocabulary, its logits take the place of the base model's. If not, it says its answer, which
is written down again in the base model's tokens.

Shape legend: N answer tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from editors.base_models.families.lookup import as_family, family_of
from editors.base_models.loading import longest_text
from editors.base_models.reading import UNREADABLE
from editors.common.errors import BaseModelError, EditorError, one_line
from editors.lm.generation import continue_greedily
from editors.lm.losses import answer_nll
from editors.methods.serac.counterfactual.context import COUNTERFACTUAL_LIMIT, check_length, with_contexts
from editors.methods.serac.counterfactual.interface import Counterfactual, fit_width
from editors.methods.serac.counterfactual.logit_passes import LogitPasses
from editors.methods.serac.counterfactual.text_passes import TextPasses
from editors.methods.serac.kept import keep_model, kept_model
from editors.methods.serac.passes import Application, Passes
from editors.methods.serac.texts import BaseTexts, context_text
from editors.texts.batches import TokenBatch
from editors.texts.requests import EditRequest

if TYPE_CHECKING:
    from editors.lm.frozen import FrozenLM


class SecondModel(Counterfactual):
    """A language model beside the base model.

    Args:
        model: it; in float32, and in eval mode like the base model.
        tokenizer: its own.
        longest_answer: most tokens of an answer that is handed on as text.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, longest_answer: int) -> None:
        super().__init__()
        self.model = model.requires_grad_(requires_grad=True)
        self.tokenizer = tokenizer
        self.longest_answer = longest_answer
        self._family = as_family(model)
        self._texts = self._family.text_encoder(tokenizer)
        self._compared: tuple[object, bool] = (None, False)
        self.tied = _tied_names(model)
        self.register_state_dict_post_hook(_drop_tied)
        self.register_load_state_dict_pre_hook(_put_back_tied)
        self.eval()

    def train(self, mode: bool = True) -> SecondModel:  # noqa: ARG002
        """Stay in eval mode; weights are trained all the same."""
        return super().train(mode=False)

    def keep(self, folder: Path) -> None:
        """Write configuration and tokenizer: the artifact needs nothing of the machine that it was trained on."""
        keep_model(folder, self.model, self.tokenizer)

    def replaces_logits(self, texts: BaseTexts, base: PreTrainedModel) -> bool:
        """Whether tokens mean the same to this model and to the base model, and both only decode."""
        if self._compared[0] is not texts.tokenizer:
            self._compared = texts.tokenizer, texts.tokenizer.get_vocab() == self.tokenizer.get_vocab()
        return self._compared[1] and not (self._family.has_encoder or family_of(base.config).has_encoder)

    def logits(self, texts: BaseTexts, lm: FrozenLM, tokens: TokenBatch, requests: Sequence[EditRequest]) -> Tensor:
        """This model's logits after the contexts, for the base model's tokens; refused where it has others."""
        if not self.replaces_logits(texts, lm.model):
            raise EditorError(
                "objective mixture mixes the probabilities of both models, and this counterfactual model has another "
                "vocabulary than the base model, or one of them has an encoder; use objective supervised"
            )
        joined = with_contexts(tokens, texts.contexts(requests), texts.special_ids)
        self._check_length(joined.attention_mask)
        return fit_width(self._at_answers(joined), lm.model.config.get_text_config().vocab_size)

    def nll(
        self, texts: BaseTexts, lm: FrozenLM, tokens: TokenBatch, requests: Sequence[EditRequest]
    ) -> tuple[Tensor, Tensor]:
        """Of the base model's tokens where this model has them, of its own where not."""
        if self.replaces_logits(texts, lm.model):
            return super().nll(texts, lm, tokens, requests)
        triples = zip(requests, texts.prompts(tokens), texts.answers(tokens), strict=True)
        pairs = [(context_text(request) + prompt, answer) for request, prompt, answer in triples]
        own = self._texts.batch(pairs, tokens.episode.tolist(), longest_text(self.model), COUNTERFACTUAL_LIMIT)
        own = own.to(tokens.input_ids.device)
        return answer_nll(self._at_answers(own), own.targets), own.answer_episode()

    def _at_answers(self, tokens: TokenBatch) -> Tensor:
        logits: Tensor = self.model(**self._family.arguments(tokens)).logits
        return logits.flatten(0, 1)[tokens.positions]

    def say(self, prompts: Sequence[str]) -> list[str]:
        """The greedy answer to each of `prompts`, which hold their contexts."""
        ids, mask = self._texts.prompts(prompts)
        self._check_length(mask)
        device, prefix = self.model.device, self._texts.answer_prefix
        said = continue_greedily(self.model, ids.to(device), mask.to(device), self.longest_answer, prefix)
        texts: list[str] = self.tokenizer.batch_decode(said, skip_special_tokens=True)
        return [text.strip() for text in texts]

    def _check_length(self, mask: Tensor) -> None:
        check_length(mask, self.model, f"{COUNTERFACTUAL_LIMIT} is")

    def passes(self, application: Application) -> Passes:
        """Passes that take its logits, or what it says where it has other tokens than the base model."""
        if self.replaces_logits(application.texts, application.model):
            return LogitPasses(application, self.model)
        return TextPasses(application, self.say)


def second_model(kept: Path, longest_answer: int) -> SecondModel:
    """The model that was kept in `kept`, without its weights.

    Raises:
        BaseModelError: the folder is damaged.
    """
    try:
        model, tokenizer = kept_model(kept, _from_config)
    except UNREADABLE as error:
        raise BaseModelError(f"counterfactual model {str(kept)!r} cannot be loaded: {one_line(error)}") from error
    return SecondModel(model, tokenizer, longest_answer)


def _from_config(config: Any, **options: Any) -> Any:
    return family_of(config).auto_class.from_config(config, **options)


# --- tied weights are stored once ------------------------------------------------------------------------------------


def _tied_names(model: nn.Module) -> dict[str, str]:
    """For each parameter that is another one, the name of that one."""
    first: dict[int, str] = {}
    names = ((f"model.{name}", parameter) for name, parameter in model.named_parameters(remove_duplicate=False))
    return {name: first[id(p)] for name, p in names if first.setdefault(id(p), name) != name}


def _drop_tied(module: Any, state: dict[str, Tensor], prefix: str, _: Mapping[str, Any]) -> None:
    for name in module.tied:
        del state[prefix + name]


def _put_back_tied(module: Any, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    for name, source in list(module.tied.items()):
        if prefix + name in state:  # not tied where it was saved: T5 learns only from its weights that it is not
            parent, _, attribute = name.rpartition(".")
            setattr(module.get_submodule(parent), attribute, nn.Parameter(state[prefix + name].clone()))
            del module.tied[name]
        elif prefix + source in state:
            state[prefix + name] = state[prefix + source]

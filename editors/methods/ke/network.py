"""KE's hypernetwork in pure torch (De Cao et al. 2021, "Editing Factual Knowledge in Language Models").

Shape legend: B texts, N factor rows (tokens of all texts), E episodes, m rows and n columns of a weight as stored,
c condition width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from editors.base_models.sites import flat_name
from editors.common.autocast import without_autocast
from editors.common.errors import EditorError
from editors.common.plain import require_own_kinds
from editors.edits.low_rank import LowRankEdit
from editors.edits.protocol import SiteUpdate
from editors.lm.signal import EditSignal, Factors
from editors.making.gradient import GradientMethod
from editors.making.normaliser import RunningNormaliser
from editors.making.rows import gradient_places, gradient_rows, pad_episodes
from editors.methods.ke.condition import ConditionEncoder, condition_ids

# Factors of an update in rows, and the text or episode of each row.
_Rows = tuple[Tensor, Tensor, Tensor]
# How far the gates may be from "descend along the gradient" at the start, as a part of torch's initial weights.
_INITIAL_SPREAD = 0.1


@dataclass(frozen=True)
class KEConfig:
    """Shape of KE's hypernetwork.

    Args:
        hidden_width: width of the LSTM in each direction, and of the hidden layer that makes a matrix's gates. Paper's
            code: 128; MEND's: 512.
        condition_width: width of the condition vector. Paper's code: 1024; MEND's: 768.
        gradient: what the gates act on: the "raw" gradient (paper), the "unit" one (brought to a root mean square of 1
            over the matrix), or the "normalised" one (every feature of inputs and output gradients brought to zero mean
            and unit variance, by statistics gathered in training, as MEND does).
        gate: "paper" scales and starts the gates as the paper's code does; "balanced" scales them so that their size
            does not shrink with the matrix, and starts as gradient descent with `edit_rate`.
        edit_rate: size of the first updates with `gate` "balanced".
    """

    hidden_width: int = 128
    condition_width: int = 1024
    gradient: Literal["raw", "unit", "normalised"] = "normalised"
    gate: Literal["paper", "balanced"] = "balanced"
    edit_rate: float = 1e-4

    def __post_init__(self) -> None:
        if self.hidden_width < 1 or self.condition_width < 1:
            sizes = f"{self.hidden_width} and {self.condition_width}"
            raise EditorError(f"hidden_width and condition_width must be at least 1, got {sizes}")
        if not 0 < self.edit_rate < float("inf"):
            raise EditorError(f"edit_rate must be above 0, got {self.edit_rate}; 1e-4 to 1e-3 is usual")
        require_own_kinds(self, "ke")


@dataclass(frozen=True, kw_only=True)
class KEShape(KEConfig):
    """`KEConfig`, and what the network has to know of the base model.

    Args:
        vocabulary: V of the base model's input embeddings.
        embedding_width: their width.
        separators: token ids of the separators of a condition.
        input_rows: the sites that store their weight as `[d_in, d_out]` (GPT-2's `Conv1D`); the others as
            `[d_out, d_in]`.
    """

    vocabulary: int
    embedding_width: int
    separators: list[list[int]]
    input_rows: list[str]


@dataclass
class Gate:
    """What KE makes of a condition for one matrix (De Cao et al. 2021), for B texts.

    Args:
        alpha: `[B, m]`.
        beta: `[B, m]`.
        gamma: `[B, n]`.
        delta: `[B, n]`.
        eta: `[B, 1]`.
    """

    alpha: Tensor
    beta: Tensor
    gamma: Tensor
    delta: Tensor
    eta: Tensor


class Conditioner(nn.Module):
    """Two weight-normalised layers from a condition vector to the gates of one matrix.

    Args:
        condition_width: c.
        hidden_width: width of the hidden layer.
        m: rows of the matrix as it is stored.
        n: its columns.
    """

    def __init__(self, condition_width: int, hidden_width: int, m: int, n: int) -> None:
        super().__init__()
        self.sizes = [n, m, n, m, 1]
        self.hidden = weight_norm(nn.Linear(condition_width, hidden_width))
        self.output = weight_norm(nn.Linear(hidden_width, sum(self.sizes)))

    @torch.no_grad()
    def start_as_descent(self) -> None:
        """Let every gate start near the one that descends: gamma near -1, the others near 0."""
        self.output.parametrizations.weight.original0.mul_(_INITIAL_SPREAD)
        self.output.bias.zero_()
        self.output.bias[: self.sizes[0]] = -1

    def forward(self, condition: Tensor) -> Gate:
        """The gates for conditions `[B, c]`."""
        parts = self.output(torch.tanh(self.hidden(condition))).split(self.sizes, dim=-1)
        gamma, alpha, delta, beta, eta = parts
        return Gate(alpha, beta, gamma, delta, eta)


class KENetwork(GradientMethod):
    """The whole hypernetwork: a condition encoder, and a conditioner for each edit site.

    Args:
        site_widths: `(d_in, d_out)` of every edit site, in order.
        config: shape of the hypernetwork.
    """

    def __init__(self, site_widths: Mapping[str, tuple[int, int]], config: KEShape) -> None:
        super().__init__()
        self.config = shape = config
        self.sites = list(site_widths)
        self.condition = ConditionEncoder(
            shape.vocabulary, shape.embedding_width, shape.hidden_width, shape.condition_width
        )
        self.conditioners = nn.ModuleDict()
        self.normalisers = nn.ModuleDict()
        for site, (d_in, d_out) in site_widths.items():
            m, n = (d_in, d_out) if site in shape.input_rows else (d_out, d_in)
            conditioner = Conditioner(shape.condition_width, shape.hidden_width, m, n)
            if shape.gate == "balanced":
                conditioner.start_as_descent()
            self.conditioners[flat_name(site)] = conditioner
            if shape.gradient == "normalised":
                self.normalisers[flat_name(site)] = nn.ModuleList([RunningNormaliser(d_in), RunningNormaliser(d_out)])

    def gate_parameters(self) -> list[nn.Parameter]:
        """The parameters of the layers whose outputs are the gates."""
        return [p for c in self.conditioners.values() for p in c.get_submodule("output").parameters()]

    def updates(self, signal: EditSignal) -> LowRankEdit:
        """`dW = s sigma(eta) (gradient o softmax(alpha)^T gamma + softmax(beta)^T delta)`, added to the weight.

        `(a b^T) o (delta u^T) = (a o delta) (b o u)^T`: the gate acts on the gradient's factors, so that an update has
        one row for each token and one more, and nothing of the weight's size is formed. Where an episode has several
        texts, each has gates of its own and the updates add up.
        """
        with without_autocast(signal.predicted.device):
            condition = self.condition(*condition_ids(signal, self.config.separators))
            places = gradient_places({site: signal.factors[site] for site in self.sites})
            parts = [self._parts(site, condition, signal, places[site]) for site in self.sites]
            gated = pad_episodes([part for part, _ in parts], signal.num_episodes)
            added = pad_episodes([part for _, part in parts], signal.num_episodes)
            pairs = zip(self.sites, gated, added, strict=True)
            return LowRankEdit({site: _side_by_side(first, second) for site, first, second in pairs})

    def _parts(self, site: str, condition: Tensor, signal: EditSignal, places: Tensor) -> tuple[_Rows, _Rows]:
        """The gated gradient of a site and what is added to it, in rows; see `pad_episodes`."""
        u, delta, text = self._gradient(site, signal.factors[site], places)
        gate: Gate = self.conditioners[flat_name(site)](condition)
        size = self._scale(gate.alpha.shape[-1]) * torch.sigmoid(gate.eta)
        row_gate, column_gate = gate.alpha.softmax(dim=-1), size * gate.gamma
        row, column = gate.beta.softmax(dim=-1), size * gate.delta
        episode = signal.tokens.episode
        if site in self.config.input_rows:
            return (row_gate[text] * u, column_gate[text] * delta, episode[text]), (row, column, episode)
        return (column_gate[text] * u, row_gate[text] * delta, episode[text]), (column, row, episode)

    def _gradient(self, site: str, factors: Factors, places: Tensor) -> _Rows:
        """The rows of `gradient_rows`, in the scale that is wanted."""
        u, delta, text = gradient_rows(factors, places)
        if self.config.gradient == "normalised":
            normalise_u, normalise_delta = self.normalisers[flat_name(site)].children()
            return normalise_u(u), normalise_delta(delta), text
        if self.config.gradient == "unit":
            u = u / _root_mean_square(factors).clamp(min=torch.finfo(u.dtype).tiny)[text].unsqueeze(-1)
        return u, delta, text

    def _scale(self, m: int) -> float:
        """What the update is multiplied by.

        A softmax over m rows is 1/m on average, and sigma(0) is 1/2. Both are undone, so that untrained gates give
        `-edit_rate * gradient` for a matrix of any size.
        """
        return 1.0 if self.config.gate == "paper" else 2 * m * self.config.edit_rate


def _side_by_side(first: SiteUpdate, second: SiteUpdate) -> SiteUpdate:
    return SiteUpdate(torch.cat([first.u, second.u], dim=1), torch.cat([first.v, second.v], dim=1))


def _root_mean_square(factors: Factors) -> Tensor:
    """`[B]`: of the entries of each text's gradient `sum over tokens of u delta^T`, from `[B, T, T]` products."""
    u, delta = factors.u.float(), factors.delta.float()
    products = (u @ u.mT) * (delta @ delta.mT)
    return (products.sum(dim=(1, 2)).clamp(min=0) / (u.shape[-1] * delta.shape[-1])).sqrt()

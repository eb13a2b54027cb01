"""MEND's sites in the order of the base model's layers, as EasyEdit's version 0.0.1.dev0 reads edit rates."""

from __future__ import annotations

from torch import nn

from editors.common.errors import ArtifactError
from editors.methods.mend.network import FactorTransform, MENDNetwork


def in_model_order(network: MENDNetwork, model: nn.Module) -> MENDNetwork:
    """The same editor with its sites in the order of the model's layers.

    Args:
        network: of a trained editor.
        model: its base model; only its layers are looked at, so `load_skeleton` will do.

    Raises:
        ArtifactError: the model has no such layer.
    """
    place = {name: number for number, (name, _) in enumerate(model.named_modules())}
    for site in network.sites:
        if site not in place:
            raise ArtifactError(f"this editor is for layer {site!r}, which {type(model).__name__} does not have")
    sites = sorted(network.sites, key=place.__getitem__)
    widths = _widths(network)
    ordered = MENDNetwork({site: widths[site] for site in sites}, network.config)
    state = network.state_dict()
    state["edit_rates"] = state["edit_rates"][[network.sites.index(site) for site in sites]]
    for key, group in network.groups.items():
        rows = [group.index(site) for site in ordered.groups[key]]
        for name in state:
            if name.startswith(f"transforms.{key}.") and name.endswith((".scale", ".shift")):
                state[name] = state[name][rows]
    ordered.load_state_dict(state)
    return ordered.eval()


def _widths(network: MENDNetwork) -> dict[str, tuple[int, int]]:
    """`(d_in, d_out)` of every site."""
    widths: dict[str, tuple[int, int]] = {}
    for key, group in network.groups.items():
        transform = network.transforms[key]
        assert isinstance(transform, FactorTransform)
        widths |= dict.fromkeys(group, (transform.d_in, transform.d_out))
    return widths

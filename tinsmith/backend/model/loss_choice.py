"""Which loss a request asks for, and with what settings."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from tinker.proto import tinker_public_pb2 as pb

from tinsmith.errors import TinsmithError
from tinsmith.objectives.losses import LOSSES, Loss, Setting

SUBSTITUTABLE = "stable_reinforce"


@dataclass(frozen=True, slots=True)
class LossChoice:
    """A loss by name with its complete settings; `substitutes` is the loss that was asked for, if
    another one."""

    name: str
    settings: Mapping[str, float] = field(default_factory=dict)
    substitutes: str | None = None

    @property
    def loss(self) -> Loss:
        return LOSSES[self.name]


def choose_loss(
    request: pb.ForwardBackwardRequest, substitutes: Mapping[str, str] | None = None
) -> LossChoice:
    """The loss of a request, or why it cannot be computed. `substitutes` maps losses without a
    published formula to those that stand in for them."""
    asked = request.loss_fn
    name = (substitutes or {}).get(asked, asked)
    if name not in LOSSES:
        raise TinsmithError(_not_computed(asked))
    # The SDK writes numbers into both maps and text into the second; that one counts.
    given = dict(request.loss_fn_config) | {
        key: value.number if value.HasField("number") else value.text
        for key, value in request.loss_fn_config_v2.items()
    }
    if name == asked:
        return LossChoice(name, _resolve(name, LOSSES[name], given))
    return LossChoice(name, _resolve(f"{name}, in place of {asked},", LOSSES[name], given), asked)


def check_substitutes(substitutes: Mapping[str, str]) -> None:
    """Refuse what cannot stand in: a loss that needs more than stable_reinforce's data bring."""
    for asked, name in substitutes.items():
        fitting = [key for key, loss in LOSSES.items() if _fits_policy_data(loss)]
        if asked != SUBSTITUTABLE:
            raise TinsmithError(
                f"--substitute: only {SUBSTITUTABLE} has no published formula, got {asked!r}"
            )
        if name not in fitting:
            raise TinsmithError(
                f"--substitute {asked}: must be one of {', '.join(fitting)}, got {name!r}"
            )


def _fits_policy_data(loss: Loss) -> bool:
    has_defaults = all(setting.default is not None for setting in loss.settings.values())
    return loss.inputs == LOSSES["importance_sampling"].inputs and has_defaults


def _not_computed(name: str) -> str:
    if name == SUBSTITUTABLE:
        return (
            "loss_fn 'stable_reinforce' has no published formula, so this server does not compute "
            "it; use cispo, ppo or importance_sampling on the same data, or start the server with "
            "--substitute stable_reinforce=cispo to let one of them stand in"
        )
    if name == "custom":
        return (
            "loss_fn 'custom' is not computed by this server, which runs no code of its clients; "
            "pass the function itself to forward_backward_custom, which computes it on the client"
        )
    known = ", ".join(LOSSES)
    return f"loss_fn {name!r} is unknown to the Tinker API; use one of: {known}"


def _resolve(named: str, loss: Loss, given: Mapping[str, float | str]) -> dict[str, float]:
    if surplus := sorted(set(given) - set(loss.settings)):
        takes = f"takes {' and '.join(loss.settings)}" if loss.settings else "has no settings"
        raise TinsmithError(f"loss_fn_config: {named} {takes}, got {', '.join(surplus)}")
    return {
        key: _check(f"loss_fn_config.{key}", named, setting, given.get(key, setting.default))
        for key, setting in loss.settings.items()
    }


def _check(where: str, named: str, setting: Setting, value: float | str | None) -> float:
    if value is None:
        raise TinsmithError(f"{where}: {named} needs it and has no default ({setting.hint})")
    bounds = (
        f"{setting.lowest:g} or more"
        if setting.highest == math.inf
        else f"{setting.lowest:g} to {setting.highest:g}"
    )
    if isinstance(value, str) or not setting.lowest <= value <= setting.highest:
        raise TinsmithError(f"{where}: {named} needs a number of {bounds}, got {value!r}")
    return value

"""Method name -> its configuration, loaded when first asked for; and what a server says about its methods."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from thriftree.plugins import schema

if TYPE_CHECKING:  # a gateway in front of other servers knows the names, and does without torch
    from thriftree.plugins.vision.base import Method

#: The method of a request that asks for fewer rows and names none.
DEFAULT_METHOD = "divprune"

#: name -> module in this package, class. One line per method.
_METHODS: dict[str, tuple[str, str]] = {
    "divprune": ("divprune", "DivPrune"),
    "dpp": ("dpp", "DPP"),
    "todre": ("todre", "ToDRE"),
    "hiprune": ("hiprune", "HiPrune"),
    "fopru": ("fopru", "FoPru"),
    "globalcom2": ("globalcom2", "GlobalCom2"),
    "visionzip": ("visionzip", "VisionZip"),
    "vflowopt": ("vflowopt", "VFlowOpt"),
    "recoverable": ("recoverable", "Recoverable"),
    "token_corr_like": ("token_corr_like", "TokenCorrLike"),
    "aim": ("aim", "AIM"),
    "tome": ("tome", "ToMe"),
    "pitome": ("pitome", "PiToMe"),
    "avgpool": ("avgpool", "AvgPool"),
    "random": ("random", "Random"),
    "stride": ("stride", "Stride"),
}
_FAMILY = schema.Family("thriftree.plugins.vision", _METHODS)
names = _FAMILY.names


@dataclass(frozen=True, slots=True)
class Description:
    """A method as the server presents it; `parameters` is a JSON schema of what a request may set of it."""

    name: str
    paper: str
    summary: str
    parameters: dict[str, Any]
    needs_text: bool
    needs_attention: bool  # with its defaults it reads the attention of the vision tower
    merges: bool
    family: str = "vision"
    exact: bool = False
    default: bool = False


def describe(name: str) -> Description:
    from thriftree.plugins.vision.image import Tower

    method = _FAMILY.config(name)
    return Description(
        name=name,
        paper=method.paper,
        summary=schema.summary(method),
        parameters=schema.parameters(method),
        needs_text=method.needs_text,
        needs_attention=bool(method().taps(Tower(layers=24))),
        merges=method.merges,
        default=name == DEFAULT_METHOD,
    )


def configure(name: str, options: Mapping[str, Any] | None = None) -> Method:
    """The method with `options` checked against its schema.

    Raises:
        ValueError: the message starts with the field's name.
    """
    made: Method = _FAMILY.configure(name, options)
    return made

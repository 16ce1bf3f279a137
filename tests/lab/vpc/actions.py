"""How our actions take the place of moto's: a table of names, and the call they get."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from moto.core.responses import ActionResult, EmptyResult
from moto.core.utils import camelcase_to_underscores
from moto.ec2.responses import EC2Response

from vpc import errors, layout
from vpc.world import World

Action = Callable[[World, "Call"], dict[str, Any] | None]
ACTIONS: dict[str, Action] = {}


class Call:
    """The parameters of one call, parsed by moto from EC2's service model."""

    def __init__(self, response: Any):
        self.response = response

    def text(self, name: str) -> str | None:
        """A text parameter."""
        return self.response._get_param(name)

    def needed(self, name: str) -> str:
        """A text parameter that has to be there."""
        value = self.text(name)
        if value is None or value == "":
            raise errors.missing_parameter(name)
        return value

    def count(self, name: str) -> int | None:
        """A number."""
        value = self.response._get_param(name)
        if value is None:
            return None
        try:
            return int(value)
        except ValueError:
            raise errors.bad_value(f"Invalid value '{value}' for {name}") from None

    def flag(self, name: str) -> bool | None:
        """A yes or no."""
        value = self.response._get_param(name)
        return None if value is None else str(value).lower() == "true"

    def listed(self, name: str) -> list[Any]:
        """A list of texts or of structures."""
        return self.response._get_param(name) or []

    def structure(self, name: str) -> dict[str, Any]:
        """A structure."""
        return self.response._get_param(name) or {}

    def filters(self) -> dict[str, list[str]]:
        """The filters by name."""
        return self.response._filters_from_querystring()

    def parameters(self) -> dict[str, Any]:
        """Everything that was asked for, to compare two calls by."""
        return {k: v for k, v in self.response.data.items() if k not in ("Action", "Version")}

    def by_node(self) -> bool:
        """Whether an instance's role made it, and not whoever drives the lab."""
        return layout.ACCESS_KEY_ID not in self.response.headers.get("Authorization", "")


def action(name: str) -> Callable[[Action], Action]:
    """Registers what answers an EC2 action. None answers with plain success."""

    def register(function: Action) -> Action:
        ACTIONS[name] = function
        return function

    return register


def install(world: World) -> None:
    """Puts our actions in moto's place."""
    for name, function in ACTIONS.items():
        setattr(EC2Response, camelcase_to_underscores(name), _method(world, function))


def _method(world: World, function: Action) -> Callable[[Any], ActionResult]:
    def method(response: Any) -> ActionResult:
        response.error_on_dryrun()
        answer = function(world, Call(response))
        return EmptyResult() if answer is None else ActionResult(answer)

    return method

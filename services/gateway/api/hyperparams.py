"""Hyperparameters, which other tools call by other names: understood, checked one by one, and told again as they were sent."""

import re
from collections.abc import Collection, Mapping
from difflib import get_close_matches
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import msgspec

from services.gateway.api.problems import Refused, with_choices

SAME = (
    ("learning_rate", "lr", "unet_lr"),
    ("batch_size", "per_device_batch_size", "train_batch_size", "per_device_train_batch_size"),
    ("epochs", "num_epochs", "max_train_epochs", "num_train_epochs"),
    ("optimizer", "optim"),
    ("scheduler", "lr_scheduler", "lr_scheduler_type"),
    ("lora_r", "rank", "r", "network_dim"),
    ("lora_alpha", "alpha", "network_alpha"),
    ("max_seq_length", "max_length"),
)
"""What other tools call the same. A family has one of each at the most as its own, and understands all of them."""


def synonyms(names: Collection[str]) -> dict[str, str]:
    """Of those names: what else they are called."""
    return {other: own for group in SAME for own in group if own in names for other in group if other != own}


class Hyperparams(msgspec.Struct, frozen=True, kw_only=True):
    """Those of one way to train: fields of `spec`, whose bounds are theirs."""

    spec: type[msgspec.Struct]
    names: tuple[str, ...]
    synonyms: Mapping[str, str]
    within: str = ""
    """The field that holds them, where the family's document names it with them."""
    choices: Mapping[str, Mapping[str, str]] = {}
    """By name: what others call the same choice."""

    def understood(self, given: Mapping[str, Any], besides: Mapping[str, Any]) -> dict[str, Any]:
        """Under the platform's own names, each of them checked. `besides`: the rest of the spec."""
        called: dict[str, str] = {}
        for name in given:
            own = self.synonyms.get(name, name)
            if own not in self.names:
                raise self._refused(name[:50], self._unknown(name))
            if own in called:
                raise self._refused(name, f"is the same as {called[own]}, send only one of them")
            called[own] = name
        meant = {own: self._meant(own, given[name]) for own, name in called.items()}
        try:
            msgspec.convert({**besides, **meant}, self.spec)
        except msgspec.ValidationError as error:
            problem, _, path = str(error).partition(" - at `$.")
            own = path.rstrip("`")
            kind = get_type_hints(self.spec, include_extras=True).get(own)
            raise self._refused(called.get(own, own), _with_bounds(with_choices(problem, kind), kind)) from error
        return meant

    def echoed(self, spec: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
        """All that a run uses, under the names that were sent."""
        called = {self.synonyms.get(name, name): name for name in given}
        return {called.get(own, own): spec[own] for own in self.names if own in spec}

    def _meant(self, own: str, value: Any) -> Any:
        return self.choices[own].get(value, value) if own in self.choices and isinstance(value, str) else value

    def _unknown(self, name: str) -> str:
        near = get_close_matches(name, [*self.names, *self.synonyms], n=1)
        meant = f", did you mean {near[0]}?" if near else "."
        return f"no such hyperparameter{meant} There are {', '.join(self.names)}"

    def _refused(self, name: str, why: str) -> Refused:
        field = f"{self.within}.{name}" if self.within else name
        return Refused(422, f"{field}: {why}", field=field)


def _with_bounds(message: str, kind: Any) -> str:
    """The validator says which bound a number is beyond, but not the other."""
    bounds = _bounds(kind) if re.match(r"Expected `(int|float)` [<>]", message) else None
    if bounds is None:
        return message
    low, high = (bounds.gt if bounds.ge is None else bounds.ge), (bounds.lt if bounds.le is None else bounds.le)
    return message if low is None or high is None else f"Must be between {low:,} and {high:,}"


def _bounds(kind: Any) -> msgspec.Meta | None:
    if get_origin(kind) is Annotated:
        return next((part for part in kind.__metadata__ if isinstance(part, msgspec.Meta)), None)
    return next((found for part in get_args(kind) if (found := _bounds(part))), None)

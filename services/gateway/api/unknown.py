"""Keys that a body doesn't have: refused where they look like a slip, since what is ignored would train with defaults."""

from collections.abc import Iterator
from difflib import get_close_matches
from functools import cache
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import msgspec
from litestar.handlers import HTTPRouteHandler

from services.gateway.api.problems import Refused
from services.gateway.api.requests import AnyRequest

ALIKE = 0.8
"""`hyperparameters` and `hyperparams` are 0.85, `params` and `hyperparams` 0.71."""

LOOKED_AT = 50
LONGEST = 50
"""Comparing takes a while: a body with thousands of keys is nobody's slip."""


async def refuse_unknown_keys(request: AnyRequest) -> None:
    """Before a route reads its body. Clients of the five documents may send keys of their own, so there only what is close to a key that is not sent is refused; our own surface knows all its keys."""
    known = _known(request.route_handler)
    if not known or request.content_type[0] != "application/json":
        return
    try:
        given = msgspec.json.decode(await request.body(), type=dict[str, msgspec.Raw])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return  # the route says what is wrong with it
    unknown = [key for key in given if key not in known]
    free = {_plain(key): key for key in known if key not in given}
    for key in unknown[:LOOKED_AT]:
        if near := get_close_matches(_plain(key[:LONGEST]), free, n=1, cutoff=ALIKE):
            raise _refused(key, f"there is no such field, did you mean {free[near[0]]}?")
    if unknown and request.url.path.startswith("/v2/"):
        raise _refused(unknown[0], f"there is no such field, only {', '.join(known)}")


def _refused(key: str, why: str) -> Refused:
    name = key[:LONGEST]
    return Refused(422, f"{name}: {why}", field=name)


def _plain(key: str) -> str:
    """Camel case and dashes are slips too."""
    return key.lower().replace("_", "").replace("-", "")


@cache
def _known(handler: HTTPRouteHandler) -> tuple[str, ...]:
    """The keys of its body; none where it takes no JSON object of ours."""
    data = handler.parsed_data_field
    return tuple(field.encode_name for kind in _structs(data.annotation) for field in msgspec.structs.fields(kind)) if data else ()


def _structs(annotation: Any) -> Iterator[type[msgspec.Struct]]:
    """A body that may be left out is a union."""
    if isinstance(annotation, type) and issubclass(annotation, msgspec.Struct):
        yield annotation
    elif get_origin(annotation) in (Annotated, Union, UnionType):
        for part in get_args(annotation):
            yield from _structs(part)

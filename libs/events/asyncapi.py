"""The facts that listeners are told, as an AsyncAPI 3 document: what tools make clients, types and pages from."""

import inspect
from collections.abc import Iterable
from typing import Any

import msgspec

from .catalog import EVENTS, encode
from .envelope import CloudEvent, Event
from .samples import enveloped, sample
from .subjects import PRIVATE_CATEGORIES

SCHEMAS = "#/components/schemas"
MESSAGES = "#/components/messages"
CONTENT = "application/cloudevents+json"
ABOUT = """\
What happens in a workspace, as it happens, on NATS: subscribe to `feed.<workspace>.>`, or to any part of it, with a credential from `POST /v2/bus-credentials`. \
The bus delivers what happens while you are there; everything, from the beginning and in the same order, is at `GET /v2/events`, \
where each fact has the number that the header `Nats-Sequence` tells here. \
Types and fields are only ever added: pass by what you don't know."""
WORKSPACE = {"description": "The workspace: of the person with this id, or `local` where there are no people."}
HEADERS = {
    "type": "object",
    "properties": {
        "Nats-Sequence": {"type": "string", "pattern": "^[0-9]+$", "description": "Position in the log: grows, with gaps, since it counts all workspaces."},
        "Nats-Subject": {"type": "string", "description": "Subject in the log: as this one, with `ev` for `feed`."},
        "Nats-Time-Stamp": {"type": "string", "format": "date-time", "description": "When the log took it."},
        "Nats-Msg-Id": {"type": "string", "description": "The fact's `id`."},
    },
    "required": ["Nats-Sequence"],
}


def document(*, version: str) -> dict[str, Any]:
    told = {name: event for name, event in EVENTS.items() if is_told(event)}
    every = {name: {"$ref": f"{MESSAGES}/{name}"} for name in told}
    everything = {"address": "feed.{workspace}.>", "description": "All that is below.", "parameters": {"workspace": WORKSPACE}, "messages": every}
    return {
        "asyncapi": "3.0.0",
        "info": {"title": "trainyard events", "version": version, "description": ABOUT},
        "defaultContentType": CONTENT,
        "servers": {
            "bus": {
                "host": "{address}",
                "protocol": "nats",
                "description": "The bus.",
                "variables": {"address": {"default": "127.0.0.1:4222", "description": "One of the `servers` that come with the credential."}},
                "security": [{"$ref": "#/components/securitySchemes/credential"}],
            }
        },
        "channels": {"everything": everything} | {name: _channel(name, event) for name, event in told.items()},
        "operations": {
            name: {"action": "send", "channel": {"$ref": f"#/channels/{name}"}, "messages": [{"$ref": f"#/channels/{name}/messages/{one}"} for one in messages]}
            for name, messages in [("everything", tuple(told)), *((name, (name,)) for name in told)]
        },
        "components": {
            "securitySchemes": {
                "credential": {"type": "userPassword", "description": "`user` and `password` of `POST /v2/bus-credentials`; it may listen, and nothing else."}
            },
            "messages": {name: _message(name, event) for name, event in told.items()},
            "schemas": {"Headers": HEADERS, **schemas(told.values())},
        },
    }


def schemas(events: Iterable[type[Event]]) -> dict[str, Any]:
    """JSON Schemas of the envelope, of these events' data, and of what they are made of, by the class's name."""
    return msgspec.json.schema_components([CloudEvent, *events], ref_template=SCHEMAS + "/{name}")[1]


def is_told(event: type[Event]) -> bool:
    """Whether it is in some workspace's feed: what belongs to none is in nobody's."""
    name = str(event.__struct_config__.tag)
    return name.split(".", 1)[0] not in PRIVATE_CATEGORIES and not event.TENANT


def _channel(name: str, event: type[Event]) -> dict[str, Any]:
    key = ".".join(f"{{{field}}}" for field in event.KEY)
    parameters = {"workspace": WORKSPACE} | {field: {"description": f"`{field}` of the data."} for field in event.KEY}
    return {"address": f"feed.{{workspace}}.{name}.{key}", "parameters": parameters, "messages": {name: {"$ref": f"{MESSAGES}/{name}"}}}


def _message(name: str, event: type[Event]) -> dict[str, Any]:
    summary = inspect.cleandoc(event.__dict__.get("__doc__") or "")
    of_this_type = {"type": "object", "properties": {"type": {"const": name}, "data": {"$ref": f"{SCHEMAS}/{event.__name__}"}}}
    return {
        "name": name,
        "title": event.__name__,
        **({"summary": summary} if summary else {}),
        "contentType": CONTENT,
        "headers": {"$ref": f"{SCHEMAS}/Headers"},
        "payload": {"allOf": [{"$ref": f"{SCHEMAS}/CloudEvent"}, of_this_type]},
        "correlationId": {"location": "$message.payload#/correlationid"},
        "examples": [{"payload": msgspec.json.decode(encode(enveloped(sample(event))))}],
    }

"""The bus users: each service may write its own categories only, and nobody but infra may touch a stream."""

from collections.abc import Mapping
from dataclasses import dataclass

INFRA = "infra"

GATEWAY_CATEGORIES = ("user", "name", "credit", "quota", "workspace", "project", "dataset", "image", "example", "model", "webhook", "job")


def reading(stream: str) -> tuple[str, ...]:
    """What it takes to follow a stream: own consumers, acknowledgements, single messages."""
    return (
        f"$JS.API.STREAM.MSG.GET.{stream}",
        f"$JS.API.DIRECT.GET.{stream}",  # by sequence and in batches there is no suffix
        f"$JS.API.DIRECT.GET.{stream}.>",
        f"$JS.API.CONSUMER.CREATE.{stream}",
        *(f"$JS.API.CONSUMER.{verb}.{stream}.>" for verb in ("CREATE", "DURABLE.CREATE", "INFO", "DELETE", "MSG.NEXT")),
        f"$JS.ACK.{stream}.>",
    )


# Never `$JS.>` or `$JS.API.>`: with it a user can delete the log.
EVERY_SERVICE = ("$JS.API.INFO", *(f"$JS.API.STREAM.INFO.{stream}" for stream in ("EV", "TEL", "WORK")), "$JS.API.STREAM.NAMES", *reading("EV"), "$JS.FC.>")


@dataclass(frozen=True)
class User:
    name: str
    publish: tuple[str, ...]
    subscribe: tuple[str, ...]


SERVICES = (
    User(
        "gateway",
        publish=(
            *(f"ev.*.{category}.>" for category in GATEWAY_CATEGORIES),
            "sec.*.>",
            "proj.>",
            "ask.>",
            "rate.>",
            "$JS.API.STREAM.INFO.RATE",
            "sys.connections",
            "sys.kick.*",
            "$JS.API.DIRECT.GET.TEL",
            "$JS.API.DIRECT.GET.TEL.>",
        ),
        subscribe=("tel.>", "$SYS.REQ.USER.AUTH"),
    ),
    User("datasets", publish=("ev.*.preparation.>",), subscribe=()),
    User("training", publish=("ev.*.training.>", "tel.>", "work.>", *reading("TEL"), *reading("WORK")), subscribe=()),
    User("export", publish=("ev.*.export.>",), subscribe=()),
)
CONFIGURATION = """\
accounts {{
  TRAINYARD {{
    jetstream: enabled
    users: [
{users}
    ]
    exports: [{{stream: "feed.>", accounts: [CONSUMERS]}}]
    imports: [
      {{service: {{account: "$SYS", subject: "$SYS.REQ.SERVER.PING.CONNZ"}}, to: "sys.connections"}}
      {{service: {{account: "$SYS", subject: "$SYS.REQ.SERVER.*.KICK"}}, to: "sys.kick.*"}}
    ]
  }}
  # Event consumers: no streams, and what they may do a gateway tells the server when they connect.
  CONSUMERS {{
    imports: [{{stream: {{account: TRAINYARD, subject: "feed.>"}}}}]
    limits: {{max_connections: 10000}}  # a server has 65,536 places: there is always one for a service
  }}
  "$SYS" {{
    exports: [
      {{service: "$SYS.REQ.SERVER.PING.CONNZ", response: stream, accounts: [TRAINYARD]}}
      {{service: "$SYS.REQ.SERVER.*.KICK", accounts: [TRAINYARD]}}
    ]
  }}
}}
authorization {{
  # Whoever is none of these is a consumer: a gateway is asked. Services need no gateway to connect.
  auth_callout {{issuer: "{issuer}", account: TRAINYARD, auth_users: {names}}}
}}
"""
NAMES = (INFRA, *(user.name for user in SERVICES))


def render(passwords: Mapping[str, str], *, issuer: str) -> str:
    """The `accounts` and `authorization` blocks of a nats-server configuration. Passwords may be bcrypt hashes; `issuer` is the public half of the gateways' key."""
    lines = [_line(INFRA, passwords[INFRA], permissions="")]
    lines += [_line(user.name, passwords[user.name], permissions=_permissions(user)) for user in SERVICES]
    return CONFIGURATION.format(users="\n".join(lines), issuer=issuer, names=_listed(NAMES))


def _line(name: str, password: str, *, permissions: str) -> str:
    return f'      {{user: "{name}", password: "{password}"{permissions}}}'


def _permissions(user: User) -> str:
    publish = _listed((*user.publish, *EVERY_SERVICE))
    subscribe = _listed((f"_INBOX_{user.name}.>", "feed.>", "proj.>", "ask.>", *user.subscribe))
    # allow_responses: a question is answered into the asker's inbox, which nobody else may write to unasked
    return f", permissions: {{publish: {{allow: {publish}}}, subscribe: {{allow: {subscribe}}}, allow_responses: true}}"


def _listed(subjects: tuple[str, ...]) -> str:
    return "[" + ", ".join(f'"{subject}"' for subject in subjects) + "]"

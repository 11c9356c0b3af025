"""Names that only one may have: claimed by guard, all in one workspace of nobody's, so that no two workspaces can both win one. The gateway is the only writer."""

from typing import ClassVar

from .envelope import Event


class NameClaimed(Event, frozen=True, kw_only=True, tag="name.claimed"):
    """`name_id` follows from the scope and the name in lower case; the name itself, which may be a person's, is not told here."""

    KEY = ("name_id",)
    TENANT: ClassVar[str] = "sys"
    name_id: str
    scope: str
    holder: str


class NameReleased(Event, frozen=True, kw_only=True, tag="name.released"):
    """Anybody may claim it again."""

    KEY = ("name_id",)
    TENANT: ClassVar[str] = "sys"
    name_id: str

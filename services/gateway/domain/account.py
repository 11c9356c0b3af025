"""How somebody becomes a user: what a name, an address and a password must be like, and that each name has one holder."""

import re
import unicodedata
import uuid

import msgspec

from libs.events import Event, NameClaimed, NameReleased, Recorded, UserRegistered, WorkspaceCreated
from services.gateway.domain import credit
from services.gateway.domain.errors import EmailNotValid, EmailTaken, UsernameNotValid, UsernameTaken, WeakPassword

USERNAME, EMAIL = "user", "email"
"""Scopes of names."""
ROLES = ("user", "annotator", "admin")
SHORTEST, LONGEST = 8, 256
RESERVED = frozenset({"local", "sys", "anonymous"})

_NAMES = uuid.UUID("7a0f3a52-6a0e-5d0b-9c1d-0d2f8f1f4e77")
_USERNAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")
_EMAIL = re.compile(r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}@[A-Za-z0-9](?:[A-Za-z0-9-]{0,62})(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]{0,62}))+")
_COMMON = frozenset[str]().union(
    {"1234567890", "12345678", "123456789", "1q2w3e4r", "1qaz2wsx", "87654321", "abc12345", "abcd1234", "admin123", "baseball", "changeme", "football"},
    {"iloveyou", "letmein1", "p@ssw0rd", "passw0rd", "password", "password1", "password12", "password123", "princess", "qwerty12", "qwerty123"},
    {"qwertyui", "qwertyuiop", "sunshine", "superman", "trustno1", "welcome1"},
)


class Register(msgspec.Struct, frozen=True, kw_only=True):
    user_id: str
    username: str
    email: str
    full_name: str
    password_hash: str
    role: str = "user"
    credits: int = 0


def check(*, username: str, email: str, password: str) -> None:
    """What can be said before anything is looked up, and before the password is hashed."""
    if not _USERNAME.fullmatch(username) or username.lower() in RESERVED:
        raise UsernameNotValid
    if len(email) > 254 or not _EMAIL.fullmatch(email):
        raise EmailNotValid
    check_password(password, about=(username, email, email.partition("@")[0]))


def check_password(password: str, *, about: tuple[str, ...]) -> None:
    if not SHORTEST <= len(password) <= LONGEST:
        raise WeakPassword(why=f"it must have {SHORTEST} to {LONGEST} characters")
    if "\0" in password:
        raise WeakPassword(why="it contains the character NUL")
    low = password.lower()
    if low in _COMMON or len(set(low)) < 4:
        raise WeakPassword(why="it is one of those that are tried first")
    if low in {word.lower() for word in about}:
        raise WeakPassword(why="it is the user's own name")


def plain(password: str) -> bytes:
    """The same bytes for the same password, whatever the keyboard composes an é of."""
    return unicodedata.normalize("NFKC", password).encode()


def name_id(scope: str, name: str) -> str:
    """The same one in whatever case the name is written."""
    return str(uuid.uuid5(_NAMES, f"{scope}\n{name.lower()}"))


def holder(held_by: str, recorded: Recorded) -> str:
    """Who holds a name after this fact; empty when nobody does."""
    match recorded.event:
        case NameClaimed(holder=new):
            return new
        case NameReleased():
            return ""
        case _:
            return held_by


def register(wanted: Register, *, username_held_by: str, email_held_by: str) -> list[Event]:
    """All in one batch: of two who want a name only one can append it."""
    if username_held_by:
        raise UsernameTaken
    if email_held_by:
        raise EmailTaken
    return [
        NameClaimed(name_id=name_id(USERNAME, wanted.username), scope=USERNAME, holder=wanted.user_id),
        NameClaimed(name_id=name_id(EMAIL, wanted.email), scope=EMAIL, holder=wanted.user_id),
        UserRegistered(
            user_id=wanted.user_id,
            username=wanted.username,
            email=wanted.email,
            full_name=wanted.full_name,
            password_hash=wanted.password_hash,
            role=wanted.role,
        ),
        WorkspaceCreated(workspace_id=wanted.user_id, owner_id=wanted.user_id),
        *credit.welcome(wanted.user_id, wanted.credits),
    ]

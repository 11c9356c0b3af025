"""People: how they enter, and with which keys. Secret, since hashes are in them: never republished. The gateway is the only writer."""

from .envelope import Event


class UserRegistered(Event, frozen=True, kw_only=True, tag="user.registered"):
    """In one batch with the claims of both names, and the user's own workspace, which has the user's id."""

    KEY = ("user_id",)
    FOUNDS = True
    user_id: str
    username: str
    email: str
    full_name: str = ""
    password_hash: str
    role: str = "user"


class UserPasswordChanged(Event, frozen=True, kw_only=True, tag="user.password_changed"):
    """All sessions end with it; keys stay."""

    KEY = ("user_id",)
    user_id: str
    password_hash: str


class UserRoleChanged(Event, frozen=True, kw_only=True, tag="user.role_changed"):
    KEY = ("user_id",)
    user_id: str
    role: str


class UserLoggedIn(Event, frozen=True, kw_only=True, tag="user.logged_in"):
    """A session begins. `token_sha256` is of its refresh token, `expires_at` in seconds since 1970; `ended` are older sessions that it takes the place of."""

    KEY = ("user_id",)
    user_id: str
    session_id: str
    token_sha256: str
    expires_at: int
    ended: list[str] = []


class UserLoggedOut(Event, frozen=True, kw_only=True, tag="user.logged_out"):
    KEY = ("user_id",)
    user_id: str
    session_id: str


class UserKeyCreated(Event, frozen=True, kw_only=True, tag="user.key_created"):
    """An API key, which is shown to its owner once and known here by its hash."""

    KEY = ("user_id",)
    user_id: str
    key_id: str
    name: str
    key_sha256: str


class UserKeyRevoked(Event, frozen=True, kw_only=True, tag="user.key_revoked"):
    KEY = ("user_id",)
    user_id: str
    key_id: str


class UserDeleted(Event, frozen=True, kw_only=True, tag="user.deleted"):
    """Nobody enters as this user any more, and both names are free. What is in the workspace stays, but for its webhooks: they end with it."""

    KEY = ("user_id",)
    user_id: str

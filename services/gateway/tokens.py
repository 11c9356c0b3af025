"""What people show to be let in: signed access tokens for half an hour, and opaque credentials of which only the hash is known here."""

import base64
import binascii
import hashlib
import hmac
import secrets
import time
import uuid
from collections.abc import Callable

import jwt
import msgspec

ACCESS, ALGORITHM = "access", "HS256"
LIFETIME = 1800
"""Seconds that an access token is good for."""
SESSION = 30 * 86_400
"""Seconds after which people log in again."""
LONGEST = 2048
KEY, REFRESH = "ty_", "tyr_"
LEAST_SECRET = 32

_SECRET = 24
_SIZE = 16 + 16 + _SECRET


class Bad(Exception):
    """Not a token of ours, not good any more, or not good for this."""


class Claims(msgspec.Struct, frozen=True, kw_only=True):
    sub: str
    sid: str
    typ: str
    iat: int
    exp: int


class Opaque(msgspec.Struct, frozen=True, kw_only=True):
    """A refresh token or an API key: whose it is, which of theirs, and a secret."""

    user_id: str
    id: str
    secret: bytes

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.secret).hexdigest()

    def fits(self, sha256: str) -> bool:
        return hmac.compare_digest(self.sha256, sha256)

    def text(self, prefix: str) -> str:
        packed = uuid.UUID(self.user_id).bytes + uuid.UUID(self.id).bytes + self.secret
        return prefix + base64.urlsafe_b64encode(packed).rstrip(b"=").decode()


def opaque(user_id: str, id: str) -> Opaque:
    return Opaque(user_id=user_id, id=id, secret=secrets.token_bytes(_SECRET))


def unpack(text: str, prefix: str) -> Opaque:
    body = text.removeprefix(prefix)
    if not text.startswith(prefix) or len(text) > LONGEST:
        raise Bad
    try:
        packed = base64.b64decode(body + "=" * (-len(body) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as error:
        raise Bad from error
    if len(packed) != _SIZE:
        raise Bad
    return Opaque(user_id=str(uuid.UUID(bytes=packed[:16])), id=str(uuid.UUID(bytes=packed[16:32])), secret=packed[32:])


class Signer:
    """Access tokens. Algorithm, kind and lifetime are what they are here, whatever a token says of itself."""

    def __init__(self, secret: str, *, now: Callable[[], float] = time.time) -> None:
        self._secret = secret.encode()
        self._now = now

    def sign(self, *, user_id: str, session_id: str) -> str:
        now = int(self._now())
        return jwt.encode({"sub": user_id, "sid": session_id, "typ": ACCESS, "iat": now, "exp": now + LIFETIME}, self._secret, algorithm=ALGORITHM)

    def read(self, token: str) -> Claims:
        if len(token) > LONGEST:
            raise Bad
        checks = {"verify_exp": False, "verify_iat": False, "verify_nbf": False}  # our own claims are few, and checked below as numbers
        try:
            found = jwt.decode(token, self._secret, algorithms=[ALGORITHM], options=checks)  # pyright: ignore[reportArgumentType]
            claims = msgspec.convert(found, Claims)
        except (jwt.InvalidTokenError, msgspec.ValidationError, ValueError, RecursionError) as error:
            raise Bad from error
        now = self._now()
        if claims.typ != ACCESS or claims.exp <= now or claims.exp - claims.iat > LIFETIME or claims.iat > now + 60:
            raise Bad
        return claims

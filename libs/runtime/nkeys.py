"""Keys and signed claims as NATS has them: ed25519 seeds that begin with S, and JSON web tokens of NATS's own kind."""

import base64
import binascii
import hashlib
import secrets
from typing import Any

import msgspec
from Crypto.PublicKey import ECC
from Crypto.Signature import eddsa

SEED, ACCOUNT, USER = 18 << 3, 0, 20 << 3
"""The first bits of what is encoded: they make the S, A and U that keys begin with."""
HEADER = {"typ": "JWT", "alg": "ed25519-nkey"}


class NotASeed(Exception):
    """What should be the seed of an account's key is something else."""


class NotAToken(Exception):
    """What should be a token is something else."""


class Issuer:
    """The key of an account."""

    def __init__(self, seed: str) -> None:
        self._key = ECC.construct(curve="Ed25519", seed=_raw(seed))
        self.public = _encoded(bytes([ACCOUNT]) + self._key.public_key().export_key(format="raw"))

    def claims(self, *, subject: str, audience: str, issued_at: int, nats: dict[str, Any], name: str = "") -> str:
        """A signed token."""
        body = {"iss": self.public, "sub": subject, "aud": audience, "iat": issued_at, "name": name, "nats": {**nats, "version": 2}}
        id = base64.b32encode(hashlib.sha256(msgspec.json.encode(body)).digest()).rstrip(b"=").decode()
        text = f"{_url64(msgspec.json.encode(HEADER))}.{_url64(msgspec.json.encode({**body, 'jti': id}))}"
        return f"{text}.{_url64(eddsa.new(self._key, 'rfc8032').sign(text.encode()))}"


def new_seed() -> str:
    return _encoded(bytes([SEED | ACCOUNT >> 5, (ACCOUNT & 31) << 3]) + secrets.token_bytes(32))


def read(token: str) -> dict[str, Any]:
    """The claims of a token, whoever signed it."""
    try:
        body = token.split(".")[1]
        return msgspec.json.decode(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    except (LookupError, ValueError) as error:
        raise NotAToken from error


def _raw(seed: str) -> bytes:
    try:
        packed = base64.b32decode(seed + "=" * (-len(seed) % 8))
    except (binascii.Error, ValueError) as error:
        raise NotASeed from error
    if len(packed) != 36 or packed[:2] != bytes([SEED | ACCOUNT >> 5, (ACCOUNT & 31) << 3]) or packed[-2:] != _crc(packed[:-2]):
        raise NotASeed
    return packed[2:-2]


def _encoded(packed: bytes) -> str:
    return base64.b32encode(packed + _crc(packed)).rstrip(b"=").decode()


def _crc(packed: bytes) -> bytes:
    """CRC-16/XMODEM, little end first."""
    return binascii.crc_hqx(packed, 0).to_bytes(2, "little")


def _url64(text: bytes) -> str:
    return base64.urlsafe_b64encode(text).rstrip(b"=").decode()

"""Secrets of endpoints: made, kept encrypted, and used to sign as Standard Webhooks says."""

import base64
import hashlib
import hmac
import os

from Crypto.Cipher import AES

PREFIX = "whsec_"
_VERSION = "v1."
_NONCE, _TAG = 12, 16


class Unsealable(Exception):
    """It was encrypted with another TRAINYARD_SECRET."""


def new_secret(entropy: bytes) -> str:
    """`entropy` is 24 to 64 random bytes."""
    return PREFIX + base64.b64encode(entropy).decode()


class Seal:
    """Encrypts what lies in the log and in the views. Bound to the endpoint: the secret of one can't be put in another's place."""

    def __init__(self, secret: str) -> None:
        self._key = hashlib.sha256(b"trainyard webhook secrets\0" + secret.encode()).digest()

    def close(self, secret: str, *, about: str) -> str:
        nonce = os.urandom(_NONCE)
        cipher = AES.new(self._key, AES.MODE_GCM, nonce=nonce)
        cipher.update(about.encode())
        text, tag = cipher.encrypt_and_digest(secret.encode())
        return _VERSION + base64.b64encode(nonce + tag + text).decode()

    def open(self, sealed: str, *, about: str) -> str:
        raw = base64.b64decode(sealed.removeprefix(_VERSION))
        cipher = AES.new(self._key, AES.MODE_GCM, nonce=raw[:_NONCE])
        cipher.update(about.encode())
        try:
            return cipher.decrypt_and_verify(raw[_NONCE + _TAG :], raw[_NONCE : _NONCE + _TAG]).decode()
        except ValueError as error:
            raise Unsealable("The secret can't be read: TRAINYARD_SECRET is not the one it was kept with. Rotate it") from error


def sign(secrets: list[str], *, id: str, timestamp: int, body: bytes) -> str:
    """One signature for each secret that is in force."""
    return " ".join(_signature(secret, f"{id}.{timestamp}.".encode() + body) for secret in secrets)


def _signature(secret: str, content: bytes) -> str:
    key = base64.b64decode(secret.removeprefix(PREFIX))
    return "v1," + base64.b64encode(hmac.digest(key, content, "sha256")).decode()

"""The limits of its document: one for users, one for whoever shows no token."""

from collections.abc import Sequence

from services.gateway.limits import Bucket

HOUR = 3600
USERS = Bucket(name="deep-learning", limit=1000, seconds=HOUR, covers="everything")
ANONYMOUS = Bucket(
    name="anonymous", limit=100, seconds=HOUR, covers="whatever comes without a valid token, in any family: registering, logging in, and every 401"
)
BUCKETS = [USERS, ANONYMOUS]


def bucket(_method: str, _path: Sequence[str]) -> Bucket:
    return USERS

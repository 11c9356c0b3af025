"""Its document names no limit: only abuse is stopped."""

from collections.abc import Sequence

from services.gateway.limits import Bucket

ALL = Bucket(name="autotrainx", limit=100, seconds=1, covers="everything; a WebSocket is one request")
BUCKETS = [ALL]


def bucket(_method: str, _path: Sequence[str]) -> Bucket:
    return ALL

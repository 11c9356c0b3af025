"""The limits of its document."""

from collections.abc import Sequence

from services.gateway.limits import Bucket

MINUTE = 60
UPLOADS = Bucket(name="lora-uploads", limit=10, seconds=MINUTE, covers="`POST /api/train/upload`")
STARTS = Bucket(name="lora-starts", limit=5, seconds=MINUTE, covers="`POST /api/train/start`")
REST = Bucket(name="lora", limit=60, seconds=MINUTE, covers="everything else: status, models, credits")
BUCKETS = [UPLOADS, STARTS, REST]


def bucket(method: str, path: Sequence[str]) -> Bucket:
    match method, *path:
        case "POST", *_, "upload":
            return UPLOADS
        case "POST", *_, "start":
            return STARTS
        case _:
            return REST

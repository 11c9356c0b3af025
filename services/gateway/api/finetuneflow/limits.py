"""The limits of its document. Starting and cancelling are counted apart, or else who has started often couldn't stop a run."""

from collections.abc import Sequence

from services.gateway.limits import Bucket

MINUTE = 60
UPLOADS = Bucket(name="finetuneflow-uploads", limit=10, seconds=MINUTE, covers="`POST …/upload`")
GENERATIONS = Bucket(name="finetuneflow-generations", limit=5, seconds=MINUTE, covers="`POST …/generate`")
STARTS = Bucket(name="finetuneflow-starts", limit=3, seconds=MINUTE, covers="`POST …/train/start`")
CANCELS = Bucket(name="finetuneflow-cancels", limit=3, seconds=MINUTE, covers="`POST …/train/cancel`")
READS = Bucket(name="finetuneflow-reads", limit=60, seconds=MINUTE, covers="every `GET`; a stream is one, a download is one for each request of it")
WRITES = Bucket(name="finetuneflow-writes", limit=30, seconds=MINUTE, covers="every other `POST`, `PATCH` and `DELETE`")
BUCKETS = [UPLOADS, GENERATIONS, STARTS, CANCELS, READS, WRITES]


def bucket(method: str, path: Sequence[str]) -> Bucket:
    match method, *path:
        case "GET", *_:
            return READS
        case "POST", *_, "upload":
            return UPLOADS
        case "POST", *_, "generate":
            return GENERATIONS
        case "POST", *_, "train", "cancel":
            return CANCELS
        case "POST", *_, "train", _:
            return STARTS
        case _:
            return WRITES

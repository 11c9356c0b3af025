"""What a run's child and its worker say to each other: msgpack, each frame behind its length. Imports nothing heavy, both sides read it."""

import struct
from typing import Any

import msgspec

from libs.events import FineTune, Fit

LONGEST = 8 * 1024 * 1024
_length = struct.Struct("<I")


class Assignment(msgspec.Struct, frozen=True, kw_only=True, tag_field="run"):
    """What every child is told. Paths lie in its run folder, or are folders of models it may read."""

    job_id: str
    attempt: int
    folder: str
    """The child's own: checkpoints, artifacts and temporary files go here."""
    snapshot: str
    """What there is to learn from: JSON lines of rows, a table as Parquet, or a ZIP of images."""
    resume: str = ""
    """A checkpoint file to go on from."""
    device: str = "cpu"
    """`cpu`, or `cuda:0` as the child sees its devices."""
    threads: int = 1
    cache: str = ""
    """Where downloaded models are kept between runs."""


class RunSpec(Assignment, frozen=True, kw_only=True, tag="tuning"):
    """A language model is fine-tuned."""

    tuning: FineTune
    merge: str = ""
    """A folder with an adapter that `tuning` made: it is merged into its base, and nothing is trained. Then there is no snapshot."""
    texts: list[str] = []
    """On which the merged model is compared with its base and the adapter."""


class FitSpec(Assignment, frozen=True, kw_only=True, tag="fit"):
    """A model is fitted to a data set."""

    fit: Fit
    dataset_id: str = ""
    sha256: str = ""
    """Of the snapshot: for the model's card."""


class Frame(msgspec.Struct, frozen=True, kw_only=True, tag_field="t"):
    pass


class Hello(Frame, frozen=True, kw_only=True, tag="hello"):
    pid: int
    device: str
    """As people call it: `NVIDIA H200`, `cpu`."""
    versions: dict[str, str] = {}


class Phase(Frame, frozen=True, kw_only=True, tag="phase"):
    """What goes on before the first step: download, load, tokenize, warm up."""

    name: str
    done: int = 0
    total: int = 0


class Ready(Frame, frozen=True, kw_only=True, tag="ready"):
    """Steps come next. `step` is the last one that is done already."""

    step: int
    total_steps: int
    facts: dict[str, Any] = {}
    """For the report: parameters, trainable ones, rows, tokens, supervised tokens, packing efficiency, warnings."""


class Step(Frame, frozen=True, kw_only=True, tag="step"):
    step: int
    loss: float
    lr: float
    epoch: float
    tokens: int
    grad_norm: float | None = None
    seconds: float
    memory: int = 0


class Evaluated(Frame, frozen=True, kw_only=True, tag="evaluated"):
    step: int
    metrics: dict[str, float]


class Sampled(Frame, frozen=True, kw_only=True, tag="sampled"):
    step: int
    samples: list[dict[str, Any]]


class Checkpoint(Frame, frozen=True, kw_only=True, tag="checkpoint"):
    """The file is complete and synced; the worker may move it away."""

    step: int
    path: str


class BatchReduced(Frame, frozen=True, kw_only=True, tag="batch_reduced"):
    step: int
    micro_tokens: int


class Completed(Frame, frozen=True, kw_only=True, tag="completed"):
    step: int
    artifacts: dict[str, str]
    """Paths by file name."""
    metrics: dict[str, float] = {}
    summary: dict[str, Any] = {}


class Stopped(Frame, frozen=True, kw_only=True, tag="stopped"):
    """As asked; a checkpoint frame came before it if there was a step to keep."""

    step: int


class Failed(Frame, frozen=True, kw_only=True, tag="failed"):
    """`code` is oom, data, model, model_not_found, model_not_accessible, hub_unreachable, diverged, disk or internal; the message is for the person who started the run."""

    code: str
    message: str
    step: int = 0


class Cancel(Frame, frozen=True, kw_only=True, tag="cancel"):
    pass


FromChild = Hello | Phase | Ready | Step | Evaluated | Sampled | Checkpoint | BatchReduced | Completed | Stopped | Failed

_encoder = msgspec.msgpack.Encoder()
from_child = msgspec.msgpack.Decoder(FromChild)
to_child = msgspec.msgpack.Decoder(Cancel)


class BrokenFrame(Exception):
    """The other side doesn't speak this protocol."""


def packed(frame: Frame) -> bytes:
    body = _encoder.encode(frame)
    return _length.pack(len(body)) + body


class Unpacker:
    """Bytes as they come in, frames as they are complete."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        self._buffer += data
        frames: list[bytes] = []
        while len(self._buffer) >= _length.size:
            (length,) = _length.unpack_from(self._buffer)
            if length > LONGEST:
                raise BrokenFrame(f"a frame of {length} bytes")
            end = _length.size + length
            if len(self._buffer) < end:
                break
            frames.append(bytes(self._buffer[_length.size : end]))
            del self._buffer[:end]
        return frames

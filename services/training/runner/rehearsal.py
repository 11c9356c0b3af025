"""A dry run's process: reads a sample as a run would read its snapshot, by the same code, and says what came of it. No weights, no GPU."""

import math
import resource
import socket
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path

import msgspec

from libs.rehearsal import Answer, Estimate, Question, Refusal, Seen, Segment, Shown, Spread
from services.training.frames import RunSpec
from services.training.trainers import llm

from . import bases, entry, rows
from .examples import Examples, Reading, examples
from .outcome import Failure, Unreachable, plain, ran_out_of_memory
from .wishes import Wishes

SAMPLE, SHOWN = "snapshot.jsonl", "shown.jsonl"
"""Files in the run's folder."""
MEGABYTES = 4096
"""For a tokenizer and what it makes of a sample; a large one takes 500."""
MOST_SHOWN = 40_000
"""Characters of one example that are sent: three of them, each six bytes long at the worst, are still one answer on the bus."""


def run(sock: socket.socket, spec: RunSpec) -> None:
    if sys.platform == "linux":
        _bound()
    sock.sendall(msgspec.json.encode(answer(spec)))
    sock.close()


def _bound() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    size = pages * resource.getpagesize() + MEGABYTES * 1024 * 1024
    resource.setrlimit(resource.RLIMIT_AS, (size, size))


def answer(spec: RunSpec) -> Answer:
    readings: list[Reading] = []
    longest = spec.tuning.max_seq_length
    try:
        entry.settle(spec)
        base = llm.find(spec, _nobody, Wishes())
        longest = bases.longest(base, longest)
        learned = llm.read(spec, base, _nobody, Wishes(), seen=readings.append)
        return Answer(seen=_seen(spec, base, learned, readings, longest))
    except Unreachable as failure:
        return _refused("hub", failure.message)
    except Failure as failure:
        return _refused(failure.code, failure.message, too_long=any(len(reading.tokens.ids) > longest for reading in readings))
    except BaseException as error:  # noqa: BLE001 whoever asked can't read our stderr
        traceback.print_exc()
        if ran_out_of_memory(error):
            return _refused("model", f"To read examples with its tokenizer takes more than {MEGABYTES // 1024} GB of memory.")
        return _refused("service", f"{type(error).__name__}: {error}")


def _nobody(_: object) -> None:
    """Nobody waits for a sign of life."""


def _refused(code: str, message: str, *, too_long: bool = False) -> Answer:
    return Answer(refusal=Refusal(code=code, message=plain(message)[: entry.LONGEST_MESSAGE], too_long=too_long))


def _seen(spec: RunSpec, base: bases.Base, learned: Examples, readings: list[Reading], longest: int) -> Seen:
    counts = learned.counts
    left_out = counts.get("unsupervised", 0) + counts.get("refused", 0)
    of_rows = msgspec.json.decode(Path(spec.folder, OF).read_bytes(), type=int)
    sampled = counts["train_rows"] + left_out
    return Seen(
        sampled=sampled,
        of=of_rows,
        max_seq_length=longest,
        tokens=spread([len(reading.tokens.ids) for reading in readings]),
        trainable_tokens=spread([len(reading.learned) for reading in readings]),
        trainable_share=round(counts["supervised_tokens"] / counts["train_tokens"], 4),
        rows_cut=counts.get("truncated", 0),
        rows_left_out=left_out,
        estimate=estimate(spec, learned, sampled=sampled, of=of_rows),
        examples=[],
        warnings=[],
    )

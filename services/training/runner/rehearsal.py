"""A dry run's process: reads a sample as a run reads its snapshot, by the same code, and says what came of it. No weights, no GPU."""

import math
import resource
import socket
import sys
import traceback
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import msgspec

from libs.rehearsal import Answer, Estimate, Line, Question, Refusal, Seen, Segment, Shown, Spread
from services.training.frames import RunSpec
from services.training.trainers import llm

from . import bases, entry
from .examples import Examples, Reading
from .outcome import Failure, Unreachable, plain, ran_out_of_memory
from .wishes import Wishes

MEGABYTES = 4096
"""For a tokenizer and what it makes of a sample; a large one takes 500."""
MOST_SHOWN = 40_000
"""Characters of one example that are sent: three of them, each six bytes long at the worst, are still one answer on the bus."""
MOST_SEGMENTS = 1000
MOST_WARNINGS, LONGEST_WARNING = 20, 1000


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
    try:
        entry.settle(spec)
        return Answer(seen=_seen(spec, msgspec.json.decode(Path(spec.snapshot).read_bytes(), type=Question)))
    except Unreachable as failure:
        return _refused("hub", failure.message)
    except Failure as failure:
        return _refused(failure.code, failure.message)
    except BaseException as error:  # noqa: BLE001 whoever asked can't read our stderr
        traceback.print_exc()
        if ran_out_of_memory(error):
            return _refused("model", f"To read examples with its tokenizer takes more than {MEGABYTES // 1024} GB of memory.")
        return _refused("service", f"{type(error).__name__}: {error}")


def _refused(code: str, message: str) -> Answer:
    return Answer(refusal=Refusal(code=code, message=plain(message)[: entry.LONGEST_MESSAGE]))


def _seen(spec: RunSpec, question: Question) -> Seen:
    base = llm.find(spec, _nobody, Wishes())
    longest = bases.longest(base, spec.tuning.max_seq_length)
    readings: list[Reading] = []
    learned = _read(spec, base, question.rows, readings)
    found = learned.counts
    wanted = [_example(spec, base, question.shown, longest)] if question.shown else [shown(reading, longest) for reading in telling(readings)]
    return Seen(
        sampled=len(question.rows),
        of=question.of,
        max_seq_length=longest,
        tokens=spread([len(reading.tokens.ids) for reading in readings]),
        trainable_tokens=spread([len(reading.learned) for reading in readings]),
        trainable_share=round(found["supervised_tokens"] / found["train_tokens"], 4),
        rows_cut=found.get("truncated", 0),
        rows_left_out=len(question.rows) - found["train_rows"],
        estimate=_estimate(spec, learned, sampled=len(question.rows), of=question.of),
        examples=wanted,
        warnings=[plain(text)[:LONGEST_WARNING] for text in (*base.warnings, *learned.warnings)][:MOST_WARNINGS],
    )


def _nobody(_: object) -> None:
    """Nobody waits for a sign of life."""


def _read(spec: RunSpec, base: bases.Base, lines: list[Line], readings: list[Reading]) -> Examples:
    """As a run does, also when it refuses. Whatever split an example has, here it counts as one to learn from."""
    sample = Path(spec.folder, "sample.jsonl")
    sample.write_bytes(msgspec.json.Encoder().encode_lines([msgspec.structs.replace(line, split="train") for line in lines]))
    return llm.read(msgspec.structs.replace(spec, snapshot=str(sample)), base, _nobody, Wishes(), seen=readings.append)


def _example(spec: RunSpec, base: bases.Base, line: Line, longest: int) -> Shown:
    readings: list[Reading] = []
    try:
        _read(spec, base, [line], readings)
        problem = ""
    except Failure as failure:
        problem = plain(failure.message)[: entry.LONGEST_MESSAGE]
    if not readings:  # its chat template refuses it
        return Shown(id=line.id, split=line.split, segments=[], tokens=0, trainable_tokens=0, problem=problem)
    return msgspec.structs.replace(shown(readings[0], longest), split=line.split, problem=problem)


def _estimate(spec: RunSpec, learned: Examples, *, sampled: int, of: int) -> Estimate:
    rows = round(of * learned.counts["train_rows"] / sampled)
    steps = llm.steps(spec.tuning, rows)
    return Estimate(
        exact=sampled == of,
        rows=rows,
        tokens_per_epoch=round(of * learned.counts["train_tokens"] / sampled),
        rows_per_step=steps.rows_each,
        steps_per_epoch=steps.in_epoch,
        total_steps=steps.total,
    )


def rank(percent: float, count: int) -> int:
    """Index of the percentile among so many sorted numbers."""
    return max(0, math.ceil(percent / 100 * count) - 1)


def spread(numbers: Sequence[int]) -> Spread:
    ordered = sorted(numbers)
    named = {f"p{percent}": ordered[rank(percent, len(ordered))] for percent in (5, 50, 95, 99)}
    return Spread(min=ordered[0], max=ordered[-1], **named)


def telling(readings: list[Reading]) -> list[Reading]:
    """A shortest, a middling and a longest one."""
    ordered = sorted(readings, key=lambda reading: len(reading.tokens.ids))
    return [ordered[place] for place in sorted({0, rank(50, len(ordered)), len(ordered) - 1})]


def shown(reading: Reading, longest: int) -> Shown:
    pieces = segments(reading, longest)
    kept = _beginning(pieces)
    return Shown(
        id=reading.row.id,
        split=reading.row.split,
        segments=kept,
        tokens=len(reading.tokens.ids),
        trainable_tokens=len(reading.learned),
        complete=kept == pieces,
    )


def segments(reading: Reading, longest: int) -> list[Segment]:
    """Tokens side by side that are treated alike, as text. White space between two tokens goes with the first."""
    tokens, text, learned = reading.tokens, reading.text.text, set(reading.learned)
    begins = tokens.begins(reading.text)
    following = [len(text)] * len(tokens.ids)
    for token in range(len(tokens.ids) - 2, -1, -1):
        following[token] = begins.get(token + 1, following[token + 1])
    pieces: list[tuple[bool, bool, str]] = []
    at = 0
    for token, end in enumerate(following):
        if not (piece := tokens.mark(token, begins)):
            piece, at = text[at:end], max(at, end)
        pieces.append((token in learned, token >= longest, piece))
    alike = groupby((piece for piece in pieces if piece[2]), key=lambda piece: piece[:2])
    return [Segment(text="".join(piece[2] for piece in group), trained=trained, cut=cut) for (trained, cut), group in alike]


def _beginning(pieces: list[Segment]) -> list[Segment]:
    kept: list[Segment] = []
    room = MOST_SHOWN
    for piece in pieces:
        if room <= 0 or len(kept) == MOST_SEGMENTS:
            break
        kept.append(msgspec.structs.replace(piece, text=piece.text[:room]))
        room -= len(piece.text)
    return kept

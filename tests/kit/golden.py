"""Events as they were once written. `python -m tests.kit.golden` adds what is missing and never touches what is there."""

import sys
from pathlib import Path

from libs.events import EVENTS, Event, Recorded, decode, encode
from libs.events.samples import AT, ID, ORIGIN, enveloped, sample

__all__ = ["AT", "FOLDER", "ID", "ORIGIN", "files", "read", "sample", "written_today"]

FOLDER = Path(__file__).parents[1] / "events" / "golden"


def files(event_type: str) -> list[Path]:
    """The oldest first: `job.created.1.json`, and `job.created.1-2.json` once a field was added."""
    return sorted(FOLDER.glob(f"{event_type}.*.json"), key=lambda file: (len(file.name), file.name))


def read(file: Path) -> tuple[bytes, Recorded]:
    body = file.read_bytes().rstrip(b"\n")
    return body, decode(body, seq=1, subject="ev.golden")


def written_today(event: Event) -> bytes:
    return encode(enveloped(event))


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for event_type, event in EVENTS.items():
        there, body = files(event_type), written_today(sample(event))
        if any(read(file)[0] == body for file in there):
            continue
        number = sum(file.name.startswith(f"{event_type}.{event.SCHEMA}") for file in there)
        file = FOLDER / f"{event_type}.{event.SCHEMA}{f'-{number + 1}' if number else ''}.json"
        file.write_bytes(body + b"\n")
        sys.stdout.write(f"{file}\n")


if __name__ == "__main__":
    main()

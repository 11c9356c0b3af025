"""The streams, as the JetStream API takes them: EV keeps the facts, TEL the training steps of a day, WORK the leases of GPU jobs, RATE who asked how often."""

from typing import Any

MIB = 1024**2
SECOND = 1_000_000_000  # the API counts in nanoseconds
TWO_MINUTES = 120 * SECOND
ONE_DAY = 86_400 * SECOND
LONGEST_LIMIT = 3600 * SECOND

WORK_BYTES = 16 * MIB
RATE_BYTES = 32 * MIB  # some 200,000 counters; without room the oldest go
TEL_SHARE = 7  # TEL gets a seventh of what EV gets
TEL_BYTES_IN_MEMORY = 256 * MIB


def definitions(*, replicas: int, max_bytes: int) -> list[dict[str, Any]]:
    """All streams of an installation; `max_bytes` is the room for facts."""
    return [
        facts(replicas=replicas, max_bytes=max_bytes),
        steps(replicas=replicas, max_bytes=max_bytes // TEL_SHARE),
        leases(replicas=replicas),
        counters(replicas=replicas),
    ]


def facts(*, replicas: int, max_bytes: int) -> dict[str, Any]:
    """`sec.>` shares the stream, so that all facts have one order, but is not republished: it carries secrets."""
    return {
        "name": "EV",
        "subjects": ["ev.>", "sec.>"],
        "retention": "limits",
        "storage": "file",
        "discard": "new",  # "old" would drop facts silently
        "max_bytes": max_bytes,
        "max_consumers": 10_000,
        "num_replicas": replicas,
        "duplicate_window": TWO_MINUTES,
        "compression": "s2",
        "allow_atomic": True,
        "allow_direct": True,
        "deny_delete": True,  # purge stays possible, for the erasure of a person's data
        "republish": {"src": "ev.>", "dest": "feed.>"},
    }


def steps(*, replicas: int, max_bytes: int) -> dict[str, Any]:
    """Nothing durable rests on TEL: alone it acknowledges before it writes, replicated (where that isn't allowed) it lives in memory."""
    alone = replicas == 1
    return {
        "name": "TEL",
        "subjects": ["tel.>"],
        "retention": "limits",
        "discard": "old",
        "max_age": ONE_DAY,
        "max_msgs_per_subject": 2_000,
        "num_replicas": replicas,
        "duplicate_window": TWO_MINUTES,
        "allow_direct": True,
        **(
            {"storage": "file", "persist_mode": "async", "max_bytes": max_bytes}
            if alone
            else {"storage": "memory", "max_bytes": min(max_bytes, TEL_BYTES_IN_MEMORY)}
        ),
    }


def leases(*, replicas: int) -> dict[str, Any]:
    """One message per job: releasing a job twice is refused by the stream itself."""
    return {
        "name": "WORK",
        "subjects": ["work.>"],
        "retention": "workqueue",
        "storage": "file",
        "discard": "new",
        "discard_new_per_subject": True,
        "max_msgs_per_subject": 1,
        "max_bytes": WORK_BYTES,
        "num_replicas": replicas,
        "duplicate_window": TWO_MINUTES,
    }


def counters(*, replicas: int) -> dict[str, Any]:
    """A counter is the last message of its subject, and goes once nothing was added to it for longer than its window.

    A server that is alone forgets streams in memory when it is started again, definition and all; replicas keep them for each other.
    """
    return {
        "name": "RATE",
        "subjects": ["rate.>"],
        "retention": "limits",
        **({"storage": "file", "persist_mode": "async"} if replicas == 1 else {"storage": "memory"}),
        "discard": "old",  # counters can't have "new"
        "max_age": LONGEST_LIMIT + TWO_MINUTES,
        "max_bytes": RATE_BYTES,
        "max_msgs_per_subject": 1,
        "num_replicas": replicas,
        "duplicate_window": TWO_MINUTES,
        "allow_msg_counter": True,
    }

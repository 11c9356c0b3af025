"""Where a fact lies, and that there is one guard only for what happens to an aggregate."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.events import EVENTS, Address, ExampleDeleted, JobCancelRequested, JobCreated, PreparationStarted, address, kind, story
from libs.events.subjects import parse, subject
from tests.kit import golden

TOKENS = st.from_regex(r"[A-Za-z0-9_-]{1,40}", fullmatch=True)
BAD = ["", ".", "a.b", "*", ">", "a b", "a\n", "\n", "é", "a/b", "$SYS", "a\0", "x" * 201]


def test_all_facts_of_an_aggregate_lie_under_its_guard():
    assert address("t", JobCreated(job_id="j", kind="ingest", stages=[], inputs={})).guard == "ev.t.job.*.j"
    assert address("t", ExampleDeleted(project_id="p", example_id="e")).guard == "ev.t.example.*.p.e"
    assert subject("t", JobCancelRequested(job_id="j")) == "ev.t.job.cancel_requested.j"


@pytest.mark.parametrize("event", EVENTS.values(), ids=EVENTS)
def test_every_path_leads_to_the_same_guard(event: type):
    fact = golden.sample(event)
    where = address("t", fact)
    lies = parse(subject("t", fact))

    assert where.guard == Address(tenant=lies.tenant, category=lies.category, key=lies.key).guard
    assert subject("t", fact).split(".")[3] == kind(fact).split(".", 1)[1]
    assert [mine if guards != "*" else "*" for mine, guards in zip(subject("t", fact).split("."), where.guard.split("."), strict=True)] == where.guard.split(
        "."
    )


@given(tenant=TOKENS, category=TOKENS, name=TOKENS, key=st.lists(TOKENS, min_size=1, max_size=3).map(tuple))
def test_a_subject_is_taken_apart_as_it_was_put_together(tenant: str, category: str, name: str, key: tuple[str, ...]):
    lies = parse(Address(tenant=tenant, category=category, key=key).under(name))

    assert (lies.tenant, lies.category, lies.name, lies.key) == (tenant, category, name, key)


@pytest.mark.parametrize("bad", BAD)
def test_what_would_mean_something_else_in_a_subject_is_refused(bad: str):
    for tenant, category, key in ((bad, "job", ("j",)), ("t", bad, ("j",)), ("t", "job", (bad,)), ("t", "job", ("j", bad))):
        with pytest.raises(ValueError, match="subject"):
            Address(tenant=tenant, category=category, key=key)
    with pytest.raises(ValueError, match="subject"):
        address("t", PreparationStarted(job_id=bad))
    with pytest.raises(ValueError, match="subject"):
        story("t", bad)
    with pytest.raises(ValueError, match="subject"):
        story(bad, "j")


def test_a_job_s_story_holds_the_facts_of_all_its_stages():
    pattern = story("t", "j").split(".")

    for fact in (JobCancelRequested(job_id="j"), PreparationStarted(job_id="j")):
        assert all(wanted in ("*", token) for wanted, token in zip(pattern, subject("t", fact).split("."), strict=True))

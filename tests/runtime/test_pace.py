"""How fast work goes and when it will be done: near the truth while it goes steadily, and silent where nobody can know."""

import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from libs.pace import LONGEST_PATIENCE, PATIENCE, POINTS, UNKNOWN, Pace, Speed, eta_seconds, patience

FINITE = st.floats(allow_nan=False, allow_infinity=False, min_value=-1e12, max_value=1e12)
COUNT = st.integers(-(2**62), 2**62)


def worked(pace: Pace, *, until: float, unit: float, look: float, since: float = 0.0, before: int = 0) -> tuple[int, float]:
    """Looked at now and then: what is done, and when that was seen last."""
    done, seen, at = before, since, since
    while at <= until:
        if (reached := before + int((at - since) / unit)) != done:
            done, seen = reached, at
        pace.note(done, at=at)
        at += look
    return done, seen


@given(total=st.integers(200, 5_000), unit=st.floats(0.01, 40), look=st.floats(0.1, 2), share=st.floats(0.1, 0.95))
def test_steady_work_is_foreseen_within_a_fifth_once_a_tenth_of_it_is_done(total: int, unit: float, look: float, share: float):
    look, until = max(look, total * unit / 2_000), total * unit * share
    assume(until >= 2 * look)  # who has looked once only knows no speed
    pace = Pace()

    done, seen = worked(pace, until=until, unit=unit, look=look)

    truth = total * unit - until
    eta = eta_seconds(total - done, pace.speed, since=until - seen)
    assert eta is not None
    assert abs(eta - truth) <= 0.2 * truth + look + 1


@given(left=COUNT, made=COUNT, seconds=FINITE, since=FINITE)
def test_it_is_never_negative_and_never_no_number(left: int, made: int, seconds: float, since: float):
    eta = eta_seconds(left, Speed(made=made, seconds=seconds), since=since)

    assert eta is None or (isinstance(eta, int) and eta >= 1)


@given(notes=st.lists(st.tuples(st.integers(-5, 1_000), st.floats(0, 1_000)), max_size=300))
def test_whatever_is_noted_a_speed_is_of_something_made_in_some_time(notes: list[tuple[int, float]]):
    pace, at, done = Pace(), 0.0, 0
    for more, later in notes:
        at, done = at + later, max(0, done + more)
        pace.note(done, at=at)

        speed = pace.speed
        assert speed == UNKNOWN or (0 < speed.made <= done and 0 <= speed.seconds <= at + 0.001)
        assert math.isfinite(patience(speed))


def test_before_anything_is_done_nothing_is_known():
    pace = Pace()
    pace.note(0, at=0)
    pace.note(0, at=20)

    assert eta_seconds(100, pace.speed, since=0) is None


def test_what_others_did_before_is_no_speed_of_ours():
    pace = Pace()

    done, _ = worked(pace, until=100, unit=1, look=2, before=5_000)

    assert eta_seconds(6_000 - done, pace.speed, since=0) == pytest.approx(900, rel=0.05)


def test_work_that_stands_still_has_no_end_that_anybody_knows():
    speed = Speed(made=60, seconds=60)

    told = [eta_seconds(600, speed, since=since) for since in (0, 10, PATIENCE, PATIENCE + 1, 86_400)]

    assert told == [600, 590, 570, None, None]


def test_slow_work_is_waited_for_a_few_steps_and_fast_work_not_for_ever():
    assert patience(Speed(made=2, seconds=240)) == 480
    assert patience(Speed(made=100_000, seconds=86_400)) == LONGEST_PATIENCE


def test_an_outage_is_no_time_that_was_worked():
    pace = Pace()
    done, _ = worked(pace, until=60, unit=1, look=2)
    assert pace.speed.made

    worked(pace, until=3_720, unit=1, look=2, since=3_660, before=done)

    assert pace.speed.seconds <= 60
    assert eta_seconds(100, pace.speed, since=0) == pytest.approx(100, rel=0.05)


def test_right_after_an_outage_nothing_is_known():
    pace = Pace()
    done, _ = worked(pace, until=60, unit=1, look=2)

    pace.note(done + 1, at=3_600)

    assert pace.speed == UNKNOWN


def test_work_that_is_begun_anew_has_another_speed():
    pace = Pace()
    worked(pace, until=60, unit=1, look=2)

    pace.note(0, at=61)

    assert pace.speed == UNKNOWN


def test_a_change_of_speed_is_seen_before_as_much_again_is_done():
    pace = Pace()
    done, until = worked(pace, until=600, unit=1, look=2)

    done, until = worked(pace, until=until + 600, unit=4, look=2, since=until, before=done)

    assert eta_seconds(100, pace.speed, since=0) == pytest.approx(400, rel=0.1)


def test_a_run_of_days_is_known_by_few_points():
    pace = Pace()

    worked(pace, until=200_000, unit=3, look=2)

    assert len(pace._points) <= POINTS
    assert pace.speed.seconds == pytest.approx(100_000, rel=0.05)


def test_when_all_that_is_counted_is_done_the_rest_is_unknown():
    assert eta_seconds(0, Speed(made=10, seconds=10), since=0) is None

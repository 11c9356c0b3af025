"""The loss curve, of any length, and its picture."""

import xml.etree.ElementTree as ElementTree
from itertools import pairwise

import pytest

from services.export.curve import Curve, Step, svg


def curve(count: int, *, most: int = 1000) -> Curve:
    made = Curve(most)
    for step in range(1, count + 1):
        made.add(Step(step=step, train_loss=float(step), learning_rate=1 / step))
    return made


@pytest.mark.parametrize("count", [1, 7, 8, 9, 1000])
def test_a_thinned_curve_has_few_points_that_are_means_of_all_steps(count: int):
    made = curve(count, most=8)

    assert 1 <= len(made.points) <= 8
    assert made.points[-1].step == count
    assert (made.first, made.last) == (1.0, float(count))
    steps = [0, *(point.step for point in made.points)]
    assert [point.train_loss for point in made.points] == pytest.approx([(before + 1 + step) / 2 for before, step in pairwise(steps)])
    assert all(step - before == made.every for before, step in pairwise(steps[:-1]))


def test_a_short_curve_keeps_each_step():
    assert [point.train_loss for point in curve(1000).points] == [float(step) for step in range(1, 1001)]


def test_a_step_without_a_loss_is_no_point():
    made = curve(2)
    made.add(Step(step=3, train_loss=None))

    assert (len(made.points), made.last) == (2, 2.0)


CURVES = [
    ([(1.0, 7.0), (2.0, 3.5), (500.0, 0.02)], [(0.0, 7.1), (500.0, 0.5)]),
    ([], []),
    ([(1.0, 2.0)], []),
    ([(1.0, 0.0), (2.0, 0.0)], [(0.0, 0.0)]),
    ([(float(step), 1e-9 * step) for step in range(1, 1000)], []),
    ([(1.0, -5.0), (1e7, 1e30)], []),
]


@pytest.mark.parametrize(("train", "held_out"), CURVES)
def test_the_picture_is_whole_whatever_the_curve(train: list[tuple[float, float]], held_out: list[tuple[float, float]]):
    picture = svg(train, held_out)

    root = ElementTree.fromstring(picture)
    numbers = [
        float(number) for line in root.iter("{http://www.w3.org/2000/svg}polyline") for point in line.attrib["points"].split() for number in point.split(",")
    ]
    assert len(numbers) == 2 * (len(train) + len(held_out))
    assert all(0 <= number <= 720 for number in numbers)
    assert sum(1 for _ in root.iter("{http://www.w3.org/2000/svg}text")) < 40
    assert "nan" not in picture
    assert "prefers-color-scheme:dark" in picture

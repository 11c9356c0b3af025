"""A platform that the tests of this folder may kill piece by piece, one after the other."""

from collections.abc import Iterator

import pytest

from tests.kit.platform import Platform, platform


@pytest.fixture(scope="package")
def whole() -> Iterator[Platform]:
    """Two gateways and a data set service on servers of their own; every test leaves them well."""
    with platform() as made:
        yield made

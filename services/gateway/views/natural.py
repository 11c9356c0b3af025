"""Names in the order that people expect: x-v2 before x-v10, ant before Bee."""

import re


def natural(name: str) -> str:
    """What is sorted by its bytes where the name is to be sorted: capitals are like small letters, and a number stands behind how long it is."""
    return re.sub("[0-9]+", _counted, name.casefold())


def _counted(number: re.Match[str]) -> str:
    digits = number[0].lstrip("0")
    return f"{len(digits):03}{digits}"

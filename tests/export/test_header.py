"""What is looked at before any library may touch a file of weights."""

import json
from typing import Any

import pytest

from services.export.header import LONGEST, Unsound, length, tensors


def head(entries: Any) -> bytes:
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text


def tensor(begin: int, end: int, shape: list[int], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_a_sound_head_names_its_tensors():
    sound = head({"__metadata__": {"format": "pt"}, "b": tensor(8, 16, [2, 1]), "a": tensor(0, 8, [4], "BF16"), "empty": tensor(16, 16, [0, 3])})

    assert {name: one.shape for name, one in tensors(sound, size=len(sound) + 16).items()} == {"a": [4], "b": [2, 1], "empty": [0, 3]}


UNSOUND = {
    "no JSON": head(b"{broken"),
    "no object": head([]),
    "no text": head(b'{"\xff": 1}'),
    "a string for a tensor": head({"a": "F32"}),
    "a gap": head({"a": tensor(4, 8, [1])}),
    "an overlap": head({"a": tensor(0, 8, [2]), "b": tensor(4, 8, [1])}),
    "less data than the shape": head({"a": tensor(0, 8, [1])}),
    "a negative side": head({"a": tensor(0, 8, [-1, -2])}),
    "an unknown type": head({"a": tensor(0, 8, [1], "O8")}),
    "too many dimensions": head({"a": tensor(0, 8, [1] * 9 + [2])}),
    "offsets that are no numbers": head({"a": {"dtype": "F32", "shape": [2], "data_offsets": ["0", "8"]}}),
    "deeply nested": head(b'{"a":' * 100_000),
    "a shape beyond all numbers": head({"a": tensor(0, 8, [10**18] * 8)}),
    "another size than the file's": head({"a": tensor(0, 4, [1])}),
}


@pytest.mark.parametrize("what", UNSOUND)
def test_an_unsound_head_is_refused(what: str):
    with pytest.raises(Unsound):
        tensors(UNSOUND[what], size=len(UNSOUND[what]) + 8)


@pytest.mark.parametrize("start", [b"", b"\x01", (LONGEST + 1).to_bytes(8, "little"), b"\xff" * 8, bytes(8)])
def test_a_head_without_a_length_to_be_believed_is_refused(start: bytes):
    with pytest.raises(Unsound):
        length(start)

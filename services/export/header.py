"""The head of a safetensors file, read with bounds of our own: nothing else looks at it before it has passed here."""

import math

import msgspec

LONGEST = 32 * 1024 * 1024
"""Bytes of a head: room for 200,000 tensors."""
_MOST_TENSORS = 200_000
_MOST_DIMENSIONS = 8
_SIZES = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U64": 8,
    "U32": 4,
    "U16": 2,
    "U8": 1,
    "BOOL": 1,
}


class Tensor(msgspec.Struct, frozen=True, kw_only=True):
    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


class Unsound(Exception):
    """No safetensors file, or one that would be read wrongly. Says what is the matter."""


_decode = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_tensor = msgspec.json.Decoder(Tensor).decode


def length(start: bytes | bytearray) -> int:
    """How many bytes the head has, with the eight that say so."""
    count = int.from_bytes(start[:8], "little")
    if len(start) < 8 or not 2 <= count <= LONGEST:
        raise Unsound("its head is missing or too long")
    return 8 + count


def tensors(head: bytes, *, size: int) -> dict[str, Tensor]:
    """By name. `size` is the whole file's: tensors fill it without gap or overlap."""
    try:
        entries = _decode(head[8 : length(head)])
        entries.pop("__metadata__", None)
        if len(entries) > _MOST_TENSORS:
            raise Unsound(f"it names {len(entries)} tensors")
        found = {name: _tensor(entry) for name, entry in entries.items()}
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Unsound(f"its head can't be read ({error})") from None
    at = 0
    for name, tensor in sorted(found.items(), key=lambda item: item[1].data_offsets):
        begin, end = tensor.data_offsets
        if len(tensor.shape) > _MOST_DIMENSIONS or any(side < 0 for side in tensor.shape) or tensor.dtype not in _SIZES:
            raise Unsound(f"tensor {name[:120]} has no shape or type that we know")
        if begin != at or end - begin != math.prod(tensor.shape) * _SIZES[tensor.dtype]:
            raise Unsound(f"tensor {name[:120]} doesn't lie where it should")
        at = end
    if length(head) + at != size:
        raise Unsound("it is shorter or longer than its head says")
    return found

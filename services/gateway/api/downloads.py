"""Stored objects on their way to a client: a few pieces in memory, any range, and never a good end to bad content."""

import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any

from litestar import Response
from litestar.openapi import ResponseSpec
from litestar.response import Stream

from libs.events import Claim
from libs.storage import Damaged, Storage
from services.gateway.api.ranges import Span, known_already, wanted
from services.gateway.api.requests import AnyRequest

Content = Sequence[bytes | Claim]
"""What a download consists of, in order."""

ANSWERS = {
    200: ResponseSpec(bytes, generate_examples=False, description="The file", media_type="*/*"),
    206: ResponseSpec(bytes, generate_examples=False, description="The range that was asked for", media_type="*/*"),
    304: ResponseSpec(None, description="The file is as If-None-Match says"),
}
"""Of a route that sends a file."""

_TYPES = {"json": "application/json", "md": "text/markdown", "zip": "application/zip", "jinja": "text/plain"}


async def send(request: AnyRequest, storage: Storage, content: Content, *, filename: str) -> Response[Any]:
    """200, 206 or 304. The first piece is read before anything is promised: a store that is away is a 503; later the connection breaks."""
    whole, etag = size(content), _etag(content)
    headers = {"ETag": etag, "Cache-Control": "no-cache", "Accept-Ranges": "bytes"}
    if known_already(request.headers, etag):
        return Response(None, status_code=304, headers=headers)
    part = wanted(request.headers, size=whole, etag=etag)
    span = part or Span(0, whole)
    body = _read(storage, content, span)
    first = await anext(body, b"")
    headers |= {"Content-Length": str(span.stop - span.start), "Content-Disposition": f'attachment; filename="{filename}"'}
    if part:
        headers["Content-Range"] = f"bytes {span.start}-{span.stop - 1}/{whole}"
    kind = _TYPES.get(filename.rpartition(".")[2], "application/octet-stream")
    return Stream(_from(first, body), status_code=206 if part else 200, media_type=kind, headers=headers)


def size(content: Content) -> int:
    return sum(_size(part) for part in content)


async def _from(first: bytes, rest: AsyncGenerator[bytes, None]) -> AsyncIterator[bytes]:
    async with aclosing(rest):
        yield first
        async for piece in rest:
            yield piece


async def _read(storage: Storage, content: Content, span: Span) -> AsyncGenerator[bytes, None]:
    begin = 0
    small = b""  # goes along with the object behind it
    for part in content:
        start, stop = max(0, span.start - begin), min(_size(part), span.stop - begin)
        begin += _size(part)
        if start >= stop:
            continue
        if isinstance(part, bytes):
            small += part[start:stop]
            continue
        async for piece in _object(storage, part, start, stop):
            yield small + piece
            small = b""
    if small:
        yield small


async def _object(storage: Storage, claim: Claim, start: int, stop: int) -> AsyncIterator[bytes]:
    """The last piece is given only when all is as it was stored: of a range its length, of the whole its hash."""
    digest, missing, held = hashlib.sha256(), stop - start, b""
    async with aclosing(storage.chunks(claim.key, start=start, length=stop - start)) as chunks:
        async for chunk in chunks:
            digest.update(chunk)
            missing -= len(chunk)
            if held:
                yield held
            held = chunk
    if missing or (stop - start == claim.size and digest.hexdigest() != claim.sha256):
        raise Damaged(f"{claim.key} doesn't hold what was stored in it")
    yield held


def _size(part: bytes | Claim) -> int:
    return len(part) if isinstance(part, bytes) else part.size


def _etag(content: Content) -> str:
    """One object: its hash. Several: of what they consist of."""
    if len(content) == 1 and isinstance(content[0], Claim):
        return f'"{content[0].sha256}"'
    return f'"{hashlib.sha256(b"".join(part if isinstance(part, bytes) else part.sha256.encode() for part in content)).hexdigest()}"'

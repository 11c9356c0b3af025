"""Files on their way from a form to the object store: a few parts in memory, nothing on disk, refused as early as can be."""

import asyncio
import re
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
from multipart import MultipartError, MultipartSegment, PushMultipartParser, parse_options_header

from libs.events import Claim
from libs.runtime.waiting import within
from libs.sniff import HEAD, is_utf16, is_word, sniff
from libs.storage import Storage
from services.gateway.api.problems import Refused

MB = 1024 * 1024
DRAIN = 16 * MB
"""Bytes of a refused body that are still read, so that its sender gets to see the answer."""
_SILENCE = 1.0
"""Seconds after which a sender of whom nothing comes is taken to wait for the answer."""
_QUEUED = 8
_FIELD = 64 * 1024
_SEGMENTS = 200
MOST_FILES = 100


WORD = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"
UTF16 = "text/plain;charset=utf-16"
TEXTS = frozenset({"txt", "text", "md", "markdown"})
"""Endings of what people mean as prose, whatever it looks like."""


class Uploaded(msgspec.Struct, frozen=True, kw_only=True):
    """A file that is stored, under a key that nothing refers to yet."""

    filename: str
    mime_type: str
    content: Claim


class Form(msgspec.Struct, kw_only=True):
    fields: dict[str, str] = {}
    files: list[Uploaded] = []


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    file_mb: int
    total_mb: int
    accepted: frozenset[str]
    files_field: str = "files"
    instead: str = ""
    """What to send instead of a type that isn't accepted."""


async def receive(request: Any, storage: Storage, *, limits: Limits, new_key: Callable[[], str]) -> Form:
    """All of the form, or nothing: what was stored before a refusal is removed again."""
    stream = request.stream()
    form = Form()
    try:
        await _read(request, stream, storage, form, limits, new_key)
    except BaseException as error:
        await asyncio.shield(discard(storage, form.files))
        if isinstance(error, Refused):
            await drain(stream)
        raise
    return form


async def discard(storage: Storage, files: list[Uploaded]) -> None:
    await storage.delete([file.content.key for file in files])


async def _read(request: Any, stream: AsyncIterator[bytes], storage: Storage, form: Form, limits: Limits, new_key: Callable[[], str]) -> None:
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    if kind != "multipart/form-data":
        raise Refused(415, f"Send the files as multipart/form-data, not as '{kind[:100]}'")
    if not options.get("boundary"):
        raise Refused(400, "The multipart body has no boundary")
    if int(request.headers.get("content-length") or 0) > (limits.total_mb + 1) * MB:
        raise _too_large(limits)
    try:
        with PushMultipartParser(options["boundary"], max_segment_count=_SEGMENTS, max_header_size=8192) as parser:
            await _parts(parser, stream, storage, form, limits, new_key)
    except MultipartError as error:
        raise Refused(400, f"The multipart body is damaged: {error.args[0]}") from error


async def _parts(parser: PushMultipartParser, stream: AsyncIterator[bytes], storage: Storage, form: Form, limits: Limits, new_key: Callable[[], str]) -> None:
    part: _Part | None = None
    try:
        async for chunk in stream:
            for event in parser.parse(chunk):
                if isinstance(event, MultipartSegment):
                    part = _begin(event, storage, form, limits, new_key)
                elif part is not None and event:
                    await part.take(bytes(event))
                elif part is not None:
                    await part.finish()
                    part = None
    finally:
        if part is not None:
            await asyncio.shield(part.abort())


def _begin(segment: MultipartSegment, storage: Storage, form: Form, limits: Limits, new_key: Callable[[], str]) -> "_Part":
    name = segment.name or ""
    if not segment.filename:
        if name == limits.files_field:
            raise Refused(422, f"'{limits.files_field}' must hold files, each with a file name", field=limits.files_field)
        return _Text(name, form)
    if name != limits.files_field:
        raise Refused(422, f"No file is expected in '{name[:100]}': send files as '{limits.files_field}'", field=name[:100])
    if len(form.files) >= MOST_FILES:
        raise Refused(413, f"One upload holds at most {MOST_FILES} files: send the rest in another", code="too_many_files", field=limits.files_field)
    return _File(safe_name(segment.filename, field=name), storage, form, limits, new_key())


class _Part(ABC):
    @abstractmethod
    async def take(self, data: bytes) -> None: ...

    @abstractmethod
    async def finish(self) -> None: ...

    async def abort(self) -> None:  # noqa: B027  # text that was cut short leaves nothing behind
        """The rest will not come."""


class _Text(_Part):
    def __init__(self, name: str, form: Form) -> None:
        self._name = name
        self._form = form
        self._value = bytearray()

    async def take(self, data: bytes) -> None:
        self._value += data
        if len(self._value) > _FIELD:
            raise Refused(413, f"The field '{self._name[:100]}' is longer than {_FIELD} bytes", field=self._name[:100])

    async def finish(self) -> None:
        try:
            self._form.fields[self._name] = self._value.decode()
        except UnicodeDecodeError:
            raise Refused(422, f"The field '{self._name[:100]}' is not UTF-8 text", field=self._name[:100]) from None


class _File(_Part):
    """Its type is told by its first bytes; only then does anything reach the store."""

    def __init__(self, filename: str, storage: Storage, form: Form, limits: Limits, key: str) -> None:
        self._filename = filename
        self._storage = storage
        self._form = form
        self._limits = limits
        self._key = key
        self._head = bytearray()
        self._size = 0
        self._queue: asyncio.Queue[bytes | _GivenUp | None] = asyncio.Queue(_QUEUED)
        self._storing: asyncio.Task[Claim] | None = None
        self._mime_type = ""

    async def take(self, data: bytes) -> None:
        self._size += len(data)
        if self._size > self._limits.file_mb * MB:
            raise _too_large(self._limits)
        if self._storing is None:
            self._head += data
            if len(self._head) >= HEAD:
                self._start()
            return
        await self._put(data)

    async def finish(self) -> None:
        if self._size == 0:
            raise Refused(400, f"File '{self._filename}' is empty", code="file_empty", field=self._limits.files_field)
        if self._storing is None:
            self._start()
        assert self._storing is not None
        await self._put(None)
        content = await self._storing
        self._form.files.append(Uploaded(filename=self._filename, mime_type=self._mime_type, content=content))

    async def abort(self) -> None:
        if self._storing is None:
            return
        while not self._queue.empty():
            self._queue.get_nowait()
        self._queue.put_nowait(_GivenUp())  # the thread that stores must hear of it: cancelled from here it would wait for more for ever
        await asyncio.gather(self._storing, return_exceptions=True)
        await self._storage.delete([self._key])

    def _start(self) -> None:
        self._mime_type = told(self._filename, bytes(self._head[:HEAD]))
        if self._mime_type not in self._limits.accepted:
            raise unsupported(self._filename, self._mime_type, field=self._limits.files_field, instead=self._limits.instead)
        self._queue.put_nowait(bytes(self._head))
        self._head.clear()
        self._storing = asyncio.create_task(self._storage.put_stream(self._key, self._chunks()))

    async def _put(self, data: bytes | None) -> None:
        """Waits for room, unless the store has given up meanwhile."""
        assert self._storing is not None
        putting = asyncio.create_task(self._queue.put(data))
        await asyncio.wait({putting, self._storing}, return_when=asyncio.FIRST_COMPLETED)
        if not putting.done():
            putting.cancel()
            self._storing.result()

    async def _chunks(self) -> AsyncIterator[bytes]:
        while (chunk := await self._queue.get()) is not None:
            if isinstance(chunk, _GivenUp):
                raise chunk
            yield chunk


class _GivenUp(Exception):
    """The rest of the file will not come."""


def unsupported(filename: str, mime_type: str, *, field: str = "files", instead: str = "") -> Refused:
    message = f"File '{filename}' has unsupported MIME type '{mime_type}'"
    return Refused(400, f"{message}: {instead}" if instead else message, code="unsupported_file_type", field=field)


def told(filename: str, head: bytes) -> str:
    """By content; the name only settles what content leaves open."""
    mime_type = sniff(head)
    ending = filename.rpartition(".")[2].lower()
    if mime_type == "application/zip" and is_word(head):
        return WORD
    if is_utf16(head) and ending in TEXTS:
        return UTF16
    if mime_type == "text/plain" and ending in ("md", "markdown"):
        return "text/markdown"
    if mime_type == "text/plain" and ending == "csv":
        return "text/csv"
    if mime_type == "application/json" and ending in ("jsonl", "ndjson"):
        return "application/jsonl"
    return mime_type


def safe_name(filename: str, *, field: str = "files") -> str:
    """Letters, digits, dot, underscore and dash; a name that wants to be a path is refused, not mended."""
    if re.search(r"[/\\\0]", filename) or filename.strip() in ("", ".", "..") or ".." in filename:
        raise Refused(400, f"File name '{_printable(filename)}' is not allowed: it must not contain a path", code="unsafe_filename", field=field)
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", filename).strip("_") or "file"
    stem, dot, ending = name.rpartition(".")
    return f"{stem[: 200 - len(ending)]}.{ending}" if dot and stem and len(ending) < 20 else name[:200]


def _printable(text: str) -> str:
    return re.sub(r"[^\x20-\x7e]", "?", text)[:200]


def _too_large(limits: Limits) -> Refused:
    return Refused(413, f"File exceeds maximum size of {limits.file_mb} MB", code="file_too_large", field=limits.files_field)


async def drain(stream: AsyncIterator[bytes]) -> None:
    left = DRAIN
    try:
        async with asyncio.timeout(10):
            while left > 0 and (chunk := await within(_SILENCE, anext(stream, b""))):
                left -= len(chunk)
    except (TimeoutError, OSError):
        return

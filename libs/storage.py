"""The object store, any S3: bounded memory, bounded waiting, errors told apart by status."""

import asyncio
import hashlib
import io
import os
import random
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

import certifi
import urllib3
from minio import Minio
from minio.deleteobjects import DeleteObject
from minio.error import InvalidResponseError, MinioException, S3Error, ServerError

from libs.config import Service
from libs.events import Claim

T = TypeVar("T")

PART = 8 * 1024 * 1024
_PARTS = 9_000
"""S3 takes 10,000 of one object."""
_TRIES = 4
_CHUNK = 256 * 1024


class StorageDown(Exception):
    """The object store didn't do it, and may do it later."""


class Missing(Exception):
    """There is no such object."""


class Damaged(StorageDown):
    """The object doesn't hold what was stored in it. To ask again helps only once somebody brings it back."""


class Storage:
    def __init__(self, settings: Service) -> None:
        endpoint = settings.s3_endpoint
        self._bucket = settings.s3_bucket
        self._local_root = Path(settings.s3_local_root) if settings.s3_local_root else None
        self._threads = ThreadPoolExecutor(max_workers=16, thread_name_prefix="storage")
        self._client = Minio(
            endpoint.split("://", 1)[-1],
            access_key=settings.s3_access_key,
            secret_key=settings.s3_secret_key,
            secure=endpoint.startswith("https://"),
            region=settings.s3_region,
            http_client=urllib3.PoolManager(
                timeout=urllib3.Timeout(connect=2, read=20), retries=False, maxsize=16, cert_reqs="CERT_REQUIRED", ca_certs=certifi.where()
            ),
        )

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def check(self) -> str:
        """What is wrong with the store, or nothing."""
        there = await self._run(lambda: self._client.bucket_exists(self._bucket), tries=1)
        return "" if there else f"bucket {self._bucket} is missing"

    async def put(self, folder: str, data: bytes) -> Claim:
        """Stored under its own hash: to store the same again changes nothing."""
        digest = hashlib.sha256(data).hexdigest()
        key = f"{folder}/{digest}"

        def write() -> None:
            self._client.put_object(self._bucket, key, io.BytesIO(data), len(data))
            self._settle(key)

        await self._run(write, writing=True)
        return Claim(key=key, sha256=digest, size=len(data))

    async def put_stream(self, key: str, chunks: AsyncIterator[bytes], *, expected: int = 0) -> Claim:
        """As many bytes as come, with a few parts of them in memory at any time; beyond 70 GiB only where they are `expected`. What `chunks` raises comes out here, and nothing is stored."""
        source = _Pull(chunks, asyncio.get_running_loop())
        part = max(PART, -(-expected // _PARTS))

        def write() -> None:
            self._client.put_object(self._bucket, key, cast("BinaryIO", source), -1, part_size=part, num_parallel_uploads=2)
            self._settle(key)

        try:
            await self._run(write, tries=1, writing=True)
        except Exception:
            if source.failure:
                raise source.failure from None
            raise
        return Claim(key=key, sha256=source.digest.hexdigest(), size=source.size)

    async def get(self, claim: Claim) -> bytes:
        """The bytes that were claimed; others are as good as none."""
        data = await self._run(lambda: self._read(claim.key))
        if hashlib.sha256(data).hexdigest() != claim.sha256:
            raise Damaged(f"{claim.key} doesn't hold what was stored in it")
        return data

    async def chunks(self, key: str, *, start: int = 0, length: int = 0, size: int = _CHUNK) -> AsyncGenerator[bytes, None]:
        """An object piece by piece, or `length` bytes of it; to its end without a length."""
        response = await self._run(lambda: self._open(key, start, length))
        try:
            while chunk := await self._run(lambda: response.read(size), tries=1):
                yield chunk
        finally:
            self._threads.submit(_release, response)  # where somebody still reads, closing waits for that

    async def delete(self, keys: Iterable[str]) -> None:
        """What is gone already is no error."""
        batch = [DeleteObject(key) for key in keys]
        if not batch:
            return

        def remove() -> None:
            for error in self._client.remove_objects(self._bucket, batch):
                if error.code != "NoSuchKey":
                    raise StorageDown(f"{error.code}: {error.message}")

        await self._run(remove)

    async def delete_folder(self, folder: str) -> None:
        while keys := [key for key, _ in await self.keys(folder + "/")]:
            await self.delete(keys)

    async def keys(self, prefix: str = "", *, most: int = 1000) -> list[tuple[str, datetime]]:
        """Keys below a prefix, with the time of each, at most so many."""

        def read() -> list[tuple[str, datetime]]:
            found: list[tuple[str, datetime]] = []
            for item in self._client.list_objects(self._bucket, prefix=prefix, recursive=True):
                if item.object_name and not item.is_dir:
                    found.append((item.object_name, item.last_modified or datetime.now(UTC)))
                if len(found) >= most:
                    break
            return found

        return await self._run(read)

    async def stale(self, *, older_than: timedelta) -> AsyncIterator[list[str]]:
        """Keys of old objects, in pages, whole store over."""
        border = datetime.now(UTC) - older_than
        after = ""
        while True:

            def page(start: str = after) -> list[tuple[str, datetime]]:
                listing = self._client.list_objects(self._bucket, recursive=True, start_after=start)
                return [(item.object_name, item.last_modified or datetime.now(UTC)) for item, _ in zip(listing, range(1000), strict=False) if item.object_name]

            keys = await self._run(page)
            if not keys:
                return
            yield [key for key, at in keys if at < border]
            after = keys[-1][0]

    def _open(self, key: str, start: int = 0, length: int = 0) -> Any:
        return self._client.get_object(self._bucket, key, offset=start, length=length)

    def _read(self, key: str) -> bytes:
        response = self._open(key)
        try:
            return response.read()
        finally:
            _release(response)

    def _settle(self, key: str) -> None:
        """An embedded store doesn't fsync: a fact must not outlive its object in a power cut."""
        if self._local_root is None:
            return
        path = self._local_root / self._bucket / key
        for place in (path, *path.parents[: key.count("/") + 1]):
            handle = os.open(place, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)

    async def _run(self, work: Callable[[], T], *, tries: int = _TRIES, writing: bool = False) -> T:
        loop = asyncio.get_running_loop()
        for n in range(1, tries + 1):
            try:
                return await loop.run_in_executor(self._threads, _translated, work, writing)
            except StorageDown:
                if n == tries:
                    raise
                await asyncio.sleep(min(2.0, 0.1 * 2**n) * (0.5 + random.random()))  # jitter, no secret
        raise AssertionError("unreachable")


def _release(response: Any) -> None:
    response.close()
    response.release_conn()


def _translated(work: Callable[[], T], writing: bool) -> T:
    """Servers and client disagree on error bodies, so the status decides. A write that gets a 404 met a sick store, not a missing object."""
    try:
        return work()
    except S3Error as error:
        status = error.response.status if error.response is not None else 0
        raise _verdict(status, f"{error.code}: {error.message}", writing) from error
    except InvalidResponseError as error:
        raise _verdict(int(getattr(error, "_code", 0)), str(error), writing) from error
    except ServerError as error:
        raise StorageDown(str(error)) from error
    except (MinioException, urllib3.exceptions.HTTPError, OSError) as error:
        raise StorageDown(str(error)) from error


def _verdict(status: int, reason: str, writing: bool) -> Exception:
    return Missing(reason) if status == 404 and not writing else StorageDown(reason)


class _Pull(io.RawIOBase):
    """An async stream of bytes as the file that minio reads in its thread; hashes and counts what goes by."""

    def __init__(self, chunks: AsyncIterator[bytes], loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._chunks = chunks
        self._loop = loop
        self._held = bytearray()
        self._ended = False
        self.digest = hashlib.sha256()
        self.size = 0
        self.failure: BaseException | None = None

    def read(self, amount: int = -1, /) -> bytes:
        while not self._ended and (amount < 0 or len(self._held) < amount):
            try:
                chunk = asyncio.run_coroutine_threadsafe(self._next(), self._loop).result()
            except BaseException as error:
                self.failure = error
                raise
            if chunk is None:
                self._ended = True
            else:
                self._held += chunk
        amount = len(self._held) if amount < 0 else amount
        piece = bytes(self._held[:amount])
        del self._held[:amount]
        self.digest.update(piece)
        self.size += len(piece)
        return piece

    async def _next(self) -> bytes | None:
        return await anext(self._chunks, None)

"""An uploaded file becomes parts of rows."""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from functools import partial
from hashlib import sha256
from tempfile import TemporaryFile
from typing import IO

import msgspec
import prometheus_client

from libs.events import File, PreparationCompleted, PreparationProduced
from libs.sniff import PARQUET
from libs.storage import Missing

from .documents.blocks import Limits, Progress, Refusal, written
from .documents.parsing import parse
from .formats import rows
from .parts import Part, cut
from .preparation import Hopeless, Preparation
from .source import Source, reading

log = logging.getLogger(__name__)

UNPACKING = Limits(text=500_000_000, memory=2 * 1024**3)
"""Of a Parquet file; its library reserves half of that before it reads anything."""
HALF = 1_000

_rows = prometheus_client.Counter("trainyard_prepared_rows_total", "Rows read from uploaded files by this process")


class Drifted(Exception):
    """Parts that another version of this service cut don't fit ours: going on would double or lose rows."""


class Ingest(Preparation):
    """The one stage of an ingest job."""

    WHAT = "The file could not be read"

    async def prepare(self) -> None:
        file = msgspec.convert(self.job.inputs["file"], File)
        await self.begin()
        try:
            completed, fits = await (self._of_table(file) if file.mime_type == PARQUET else self._of_text(file))
        except Missing:
            raise Hopeless("source_missing", "The uploaded file is not in the object store any more; upload it again.") from None
        if not fits or completed.parts != len(self.parts):
            raise Drifted(self.job_id)
        await self.append(completed)
        _rows.inc(completed.rows)
        log.info("prepared", extra={"job": self.job_id, "rows": completed.rows, "valid": completed.valid})

    async def _of_text(self, file: File) -> tuple[PreparationCompleted, bool]:
        async with reading(self.storage.chunks(file.key), threads=self.threads) as source:
            found = await self._produce_all(source, file.mime_type, done=lambda: source.done, total=file.size)
        _check(source.digest.hexdigest(), file)
        return found

    async def _of_table(self, file: File) -> tuple[PreparationCompleted, bool]:
        """Parquet becomes JSON lines first, in a process that may do little. Both halves of the work count the same."""
        with TemporaryFile() as raw, TemporaryFile() as spool:  # without names: they are gone with this process, however that ends
            self._unpacked = 0
            unpacking = asyncio.create_task(self._unpack(file, raw, spool))
            try:
                await self.attend(unpacking, done=lambda: self._unpacked, total=2 * HALF)
            except Refusal as why:
                raise Hopeless(why.code, why.message) from None
            finally:
                unpacking.cancel()
                await asyncio.gather(unpacking, return_exceptions=True)
            size = spool.tell()
            spool.seek(0)
            async with reading(_lines(spool), threads=self.threads) as source:
                return await self._produce_all(source, "application/jsonl", done=lambda: HALF + HALF * spool.tell() // max(1, size), total=2 * HALF)

    async def _unpack(self, file: File, raw: IO[bytes], spool: IO[bytes]) -> None:
        def heard(progress: Progress) -> None:
            self._unpacked = HALF * min(progress.done, progress.total) // max(1, progress.total)

        digest = sha256()
        async for piece in self.storage.chunks(file.key):
            digest.update(piece)
            raw.write(piece)
        _check(digest.hexdigest(), file)
        raw.flush()
        await parse(raw, spool, mime_type=file.mime_type, limits=UNPACKING, heard=heard)

    async def _produce_all(self, source: Source, mime_type: str, *, done: Callable[[], int], total: int) -> tuple[PreparationCompleted, bool]:
        """The thread cuts the next part while one is stored, and reads the file to its end even where no more rows are."""
        eval_share = round(1 - float(self.job.spec.get("train_share", 0.9)), 9)
        parts = cut(rows(source, mime_type=mime_type, eval_share=eval_share), job_id=self.job_id)
        number, count, refused, fits = 0, 0, Counter[str](), True

        upcoming = source.step(partial(next, parts, None))
        while part := await self.attend(upcoming, done=done, total=total):
            upcoming = source.step(partial(next, parts, None))
            number, count = part.number, count + part.rows
            refused.update(part.refused)
            fits = fits and await self._produce(part)
        await self.attend(source.step(partial(_exhaust, source)), done=done, total=total)
        return PreparationCompleted(job_id=self.job_id, parts=number, rows=count, valid=count - sum(refused.values()), refused=dict(refused)), fits

    async def _produce(self, part: Part) -> bool:
        """Stored before it is told, once. False when another cut of the file was told before."""
        known = self.parts.get(part.number)
        if known is None:
            content = await self.storage.put(f"{self.tenant}/{self.job_id}", part.content)
            produced = PreparationProduced(job_id=self.job_id, part=part.number, content=content, rows=part.rows, valid=part.valid)
            await self.append(produced, there=lambda: part.number in self.parts)
            known = self.parts[part.number]
        return known.sha256 == sha256(part.content).hexdigest()


def _check(digest: str, file: File) -> None:
    if digest != file.sha256:
        raise Hopeless("source_damaged", "The file in the object store is not the one that was uploaded; upload it again.")


async def _lines(spool: IO[bytes]) -> AsyncGenerator[bytes, None]:
    """Blocks of 16 KB, out of a file that this process has just written: not worth a thread."""
    for block in written(spool):
        yield block.text.encode()


def _exhaust(source: Source) -> None:
    for _ in source:
        pass

"""An uploaded file becomes parts of rows."""

import logging
from collections import Counter
from functools import partial
from hashlib import sha256

import msgspec
import prometheus_client

from libs.events import File, PreparationCompleted, PreparationProduced
from libs.storage import Missing

from .formats import rows
from .parts import Part, cut
from .preparation import Hopeless, Preparation
from .source import Source, reading

log = logging.getLogger(__name__)

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
            async with reading(self.storage.chunks(file.key), threads=self.threads) as source:
                completed, fits = await self._produce_all(source, file)
        except Missing:
            raise Hopeless("source_missing", "The uploaded file is not in the object store any more; upload it again.") from None
        if source.digest.hexdigest() != file.sha256:
            raise Hopeless("source_damaged", "The file in the object store is not the one that was uploaded; upload it again.")
        if not fits or completed.parts != len(self.parts):
            raise Drifted(self.job_id)
        await self.append(completed)
        _rows.inc(completed.rows)
        log.info("prepared", extra={"job": self.job_id, "rows": completed.rows, "valid": completed.valid})

    async def _produce_all(self, source: Source, file: File) -> tuple[PreparationCompleted, bool]:
        """The thread cuts the next part while one is stored, and reads the file to its end even where no more rows are."""
        eval_share = round(1 - float(self.job.spec.get("train_share", 0.9)), 9)
        parts = cut(rows(source, mime_type=file.mime_type, eval_share=eval_share), job_id=self.job_id)
        number, count, refused, fits = 0, 0, Counter[str](), True

        def done() -> int:
            return source.done

        upcoming = source.step(partial(next, parts, None))
        while part := await self.attend(upcoming, done=done, total=file.size):
            upcoming = source.step(partial(next, parts, None))
            number, count = part.number, count + part.rows
            refused.update(part.refused)
            fits = fits and await self._produce(part)
        await self.attend(source.step(partial(_exhaust, source)), done=done, total=file.size)
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


def _exhaust(source: Source) -> None:
    for _ in source:
        pass

"""An uploaded data set becomes what models are trained on: a typed table, or images of one kind, and a description of its columns."""

import asyncio
import hashlib
import logging
from collections.abc import Coroutine
from tempfile import TemporaryFile
from typing import IO, Any, TypeVar

import msgspec
import prometheus_client

from libs.events import Claim, Column, DatasetInputs, DatasetSpec, File, PreparationCompleted, PreparationProduced
from libs.events.storable import NotStorable, why_not_storable
from libs.storage import Missing

from .confined import process
from .confined.frames import Described, Limits, Prepared, Progress, Refusal
from .ingest import Drifted
from .parts import Packing, Part
from .preparation import Hopeless, Preparation
from .snapshot import Pieces

T = TypeVar("T")

log = logging.getLogger(__name__)

NOTES = 50
"""Most that are told."""
LONGEST_NOTE = 600
"""Characters."""

_encode = msgspec.json.Encoder().encode
_prepared = prometheus_client.Counter("trainyard_data_sets_prepared_total", "Data sets that this process prepared", ["contents"])
_refused = prometheus_client.Counter("trainyard_data_sets_refused_total", "Data sets that nothing could be made of", ["code"])


class Prepare(Preparation):
    """The one stage of a prepare job. The same file gives the same snapshot and the same parts, whoever makes them."""

    WHAT = "The data set could not be read"

    async def prepare(self) -> None:
        inputs, spec = msgspec.convert(self.job.inputs, DatasetInputs), msgspec.convert(self.job.spec, DatasetSpec)
        self._done, self._total = 0, max(1, inputs.file.size)
        self._columns: list[Column] = []
        await self.begin()
        with TemporaryFile() as raw, TemporaryFile() as draft, TemporaryFile() as snapshot:  # without names: they are gone with this process, however that ends
            await self._watch(self._fetch(inputs.file, raw))
            try:
                made = await self._watch(self._read_apart(spec, raw, draft, snapshot))
            except Refusal as why:
                _refused.labels(why.code).inc()
                raise Hopeless(why.code, why.message) from None
            claim = await self._watch(self._store(snapshot))
        for part in self._parts():
            await self._produce(part)
        await self.append(self._completed(made, claim))
        _prepared.labels(made.contents).inc()
        log.info("data set prepared", extra={"job": self.job_id, "contents": made.contents, "rows": made.rows, "valid": made.valid})

    async def _fetch(self, file: File, raw: IO[bytes]) -> None:
        digest = hashlib.sha256()
        try:
            async for piece in self.storage.chunks(file.key, size=1024 * 1024):
                digest.update(piece)
                raw.write(piece)
        except Missing:
            raise Hopeless("source_missing", "The uploaded file is not in the object store any more; upload it again.") from None
        if digest.hexdigest() != file.sha256:
            raise Hopeless("source_damaged", "The file in the object store is not the one that was uploaded; upload it again.")
        raw.flush()

    async def _read_apart(self, spec: DatasetSpec, raw: IO[bytes], draft: IO[bytes], snapshot: IO[bytes]) -> Prepared:
        settings = self.settings
        limits = Limits(columns=settings.max_columns, rows=settings.max_rows, images=settings.max_images)

        def heard(said: Progress | Described) -> None:
            if isinstance(said, Progress):
                self._done = max(self._done, min(said.done, self._total))
            else:
                self._columns.append(said.column)

        return await process.read(raw, draft, snapshot, dataset_type=spec.dataset_type, target=spec.target, limits=limits, heard=heard)

    async def _store(self, snapshot: IO[bytes]) -> Claim:
        snapshot.seek(0)
        loop = asyncio.get_running_loop()
        digest = await loop.run_in_executor(self.threads, lambda: hashlib.file_digest(snapshot, "sha256").hexdigest())  # pyright: ignore[reportArgumentType]
        size = snapshot.tell()
        snapshot.seek(0)
        return await self.storage.put_stream(f"{self.tenant}/{self.job_id}/{digest}", Pieces(snapshot, self.threads), expected=size)

    def _parts(self) -> list[Part]:
        packing = Packing()
        return [*packing.pack((_line(column), "") for column in self._columns), *packing.rest()]

    async def _produce(self, part: Part) -> None:
        """Stored before it is told, once."""
        if part.number not in self.parts:
            content = await self.storage.put(f"{self.tenant}/{self.job_id}", part.content)
            produced = PreparationProduced(job_id=self.job_id, part=part.number, content=content, rows=part.rows, valid=part.rows)
            await self.append(produced, there=lambda: part.number in self.parts)
        if self.parts[part.number].sha256 != hashlib.sha256(part.content).hexdigest():
            raise Drifted(self.job_id)

    def _completed(self, made: Prepared, snapshot: Claim) -> PreparationCompleted:
        return PreparationCompleted(
            job_id=self.job_id,
            parts=len(self.parts),
            rows=made.rows,
            valid=made.valid,
            refused=made.refused,
            snapshot=snapshot,
            notes=[note[:LONGEST_NOTE] for note in made.notes[:NOTES]] + ([f"… and {len(made.notes) - NOTES} more."] if len(made.notes) > NOTES else []),
            contents=made.contents,
            task=made.task,
            target=made.target,
            columns=len(self._columns),
            features=sum(column.role == "feature" for column in self._columns),
            classes=made.classes,
        )

    async def _watch(self, work: Coroutine[Any, Any, T]) -> T:
        task = asyncio.create_task(work)
        try:
            return await self.attend(task, done=lambda: self._done, total=self._total)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def _line(column: Column) -> bytes:
    if why := why_not_storable(msgspec.to_builtins(column)):
        raise NotStorable(f"The column {column.index}: {why}")
    return _encode(column) + b"\n"

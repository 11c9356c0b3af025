"""Exports whose first stage merges, as the gateway leaves them for us, and the runs that they are about."""

from typing import Any

import msgspec

from libs import tiny
from libs.events import ExportInputs, FineTune, JobCreated, TrainingCompleted, TrainingSampled, TrainingStarted
from libs.events.log import Write
from tests.kit import trainer
from tests.kit.training import Job

FILES = {"adapter_model.safetensors": b"weights", "adapter_config.json": b"{}", "tokenizer.json": b"[]", "../evil": b"no"}


class Merge(Job):
    """An export job whose first stage merges. The run that it is about was never prepared, so that no worker takes it."""

    async def asked(self, **script: Any) -> "Merge":
        """`script` is for the child that merges: it travels with the run's settings."""
        await self.trained(msgspec.to_builtins(FineTune(base_model=tiny.BASE, revision=trainer.revision(**{"steps": 0} | script))), FILES)
        return self

    async def trained(self, spec: dict[str, Any], files: dict[str, bytes]) -> None:
        run = Job(self._log, self._storage, self.tenant)
        await run.create_with(spec)
        self.artifacts = {name: await self._storage.put(f"{self.tenant}/{run.id}/1", content) for name, content in files.items()}
        steps = await self._storage.put(f"{self.tenant}/{run.id}/1", b"")
        job: Any = {"job_id": run.id, "attempt": 1}
        said = [{"prompt": "2 + 2", "completion": "4", "before": "5", "expected": "four"}]
        told = [TrainingStarted(**job), TrainingSampled(**job, step=1, samples=said), TrainingCompleted(**job, step=1, artifacts=self.artifacts, steps=steps)]
        await self._log.append([Write(events=told, after=0)], origin=self._origin)
        inputs = msgspec.to_builtins(ExportInputs(project_id="p", training_job_id=run.id, merged=True))
        created = JobCreated(job_id=self.id, kind="export", stages=["training", "export"], project_id="p", inputs=inputs)
        await self._log.append([Write(events=[created], after=0)], origin=self._origin)

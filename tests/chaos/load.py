"""People at work: commands and uploads at a steady pace, on either gateway, sent again until somebody answers; all of it on record."""

import asyncio
import base64
import hashlib
import json
import random
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx

from libs.tiny import BASE
from tests.kit.datasets import classes, zipped
from tests.kit.eventually import eventually
from tests.kit.record import Op

RETRIED = (500, 502, 503, 504)
IMAGES = classes("red", "blue", each=12)
IMAGE = IMAGES["red/1.png"]
LOOKS = 5
"""At runs, for one that has come to a model."""


@dataclass
class Mine:
    """A project as the person who made it knows it."""

    id: str
    version: int = 0
    files: list[tuple[str, str]] = field(default_factory=list)
    """(file, job)."""
    run: str = ""
    """The job of its latest training."""
    model: bool = False


@dataclass
class Brought:
    """A data set as the person who brought it knows it."""

    id: str
    images: bool = False
    fits: list[str] = field(default_factory=list)


class Load:
    def __init__(
        self,
        urls: list[str],
        client: httpx.AsyncClient,
        *,
        seed: int,
        people: int = 6,
        pace: float = 0.3,
        trains: bool = False,
        fits: bool = False,
        headers: Mapping[str, str] | None = None,
        names: str = "",
    ) -> None:
        """`names`: what tells the names of these people's things from those of others."""
        self.ops: list[Op] = []
        self.over = False
        self._urls = urls
        self._client = client
        self._pace = pace
        self._trains = trains
        self._fits = fits
        self._headers = headers or {}
        self.rng = random.Random(seed)
        self._rngs = [random.Random(f"{seed}/{n}") for n in range(people)]
        self._brought: dict[random.Random, list[Brought]] = defaultdict(list)
        """Data sets, by whose they are."""
        self._predicted: dict[str, Any] = {}
        """What a model said first."""
        self._name = 0
        self._names = names

    async def run(self) -> None:
        """Until `over` is set and everything that was begun is settled, or has been tried for long."""
        await asyncio.gather(*(self._person(rng) for rng in self._rngs))

    async def furnish(self, *, patience: float = 60) -> None:
        """A model for each of those who fit, so that there is something to predict with from the beginning: of a table, of images."""
        for n, rng in enumerate(self._rngs if self._fits else []):
            await self.upload_data_set(rng, [], images=n % 2)
            await self.fit(rng, [], regret=0)

        async def look() -> bool:
            there = [await self._model(rng) for rng in self._brought]
            return all(there) or await asyncio.sleep(0.2, False)

        await eventually(look, patience=patience)

    async def _person(self, rng: random.Random) -> None:
        mine: list[Mine] = []
        deeds = {
            self.create: 22,
            self.create_twice: 6,
            self.misuse: 3,
            self.rename: 22,
            self.rename_seen: 16,
            self.rename_stale: 4,
            self.upload: 12,
            self.cancel: 3,
            self.delete_example: 6,
            self.delete_file: 3,
            self.delete: 5,
            self.delete_twice: 3,
            self.read: 12,
            **({self.train: 20, self.train_twice: 4, self.cancel_run: 4, self.export: 10} if self._trains else {}),
            self.upload_data_set: 5,
            self.delete_data_set: 2,
            **({self.fit: 30, self.predict: 30, self.delete_model: 4} if self._fits else {}),
        }
        while not self.over:
            await asyncio.sleep(rng.uniform(0, 2 * self._pace))
            if not mine:
                await self.create(rng, mine)
                continue
            (deed,) = rng.choices(list(deeds), weights=list(deeds.values()))
            await deed(rng, mine)

    # What people do

    async def create(self, rng: random.Random, mine: list[Mine]) -> None:
        op = self._creation(rng)
        await self._send(rng, op)
        if op.accepted:
            mine.append(Mine(op.answer["id"], op.version))

    async def create_twice(self, rng: random.Random, mine: list[Mine]) -> None:
        """The same request to both gateways at once."""
        first = self._creation(rng)
        second = Op(**{name: getattr(first, name) for name in ("kind", "token", "method", "path", "key", "body")})
        self.ops.append(second)
        await asyncio.gather(self._send(rng, first, at=0), self._send(rng, second, at=1))
        if first.accepted:
            mine.append(Mine(first.answer["id"], first.version))

    async def misuse(self, rng: random.Random, mine: list[Mine]) -> None:
        """Another body under a key that was used, and a body that nobody accepts."""
        first = self._creation(rng)
        await self._send(rng, first)
        other = self._new("create", "POST", "/projects", self._fresh("misuse"), key=first.key)
        other.body = {"name": other.token}
        await self._send(rng, other)
        if first.accepted and other.status not in (0, 422):
            other.odd.append(f"{other.status} for a key that was used for something else")
        bad = self._new("create", "POST", "/projects", self._fresh("bad"))
        bad.body = {"name": bad.token, "task_type": "no such task"}
        await self._send(rng, bad)

    async def rename(self, rng: random.Random, mine: list[Mine]) -> None:
        project = rng.choice(mine)
        op = self._renaming(project)
        await self._send(rng, op)
        self._learn(mine, project, op)

    async def rename_seen(self, rng: random.Random, mine: list[Mine]) -> None:
        """On the version that was read, while somebody else may be at it too."""
        project = rng.choice(mine)
        ops = [self._renaming(project, if_match=project.version) for _ in range(rng.choice((1, 2)))]
        await asyncio.gather(*(self._send(rng, op, at=n) for n, op in enumerate(ops)))
        if len(ops) == 2 and all(op.accepted for op in ops):
            ops[0].odd.append("two renames of the same version both succeeded")
        for op in ops:
            self._learn(mine, project, op)

    async def rename_stale(self, rng: random.Random, mine: list[Mine]) -> None:
        project = rng.choice(mine)
        op = self._renaming(project, if_match=max(1, project.version - 1))
        await self._send(rng, op)
        self._learn(mine, project, op)

    async def upload(self, rng: random.Random, mine: list[Mine]) -> None:
        project = rng.choice(mine)
        content = rows(rng, self._fresh("row"))
        op = self._new("upload", "POST", f"/projects/{project.id}/files/upload", hashlib.sha256(content).hexdigest(), key=self._fresh("key"))
        await self._send(rng, op, files={"files": ("rows.jsonl", content, "application/jsonl")}, data={"kind": "dataset_upload"})
        if op.accepted:
            project.files += [(file["id"], file["job_id"]) for file in op.answer["files"]]
            project.version = op.version
        if op.accepted and rng.random() < 0.4:
            await self._regret(rng, mine, project)

    async def _regret(self, rng: random.Random, mine: list[Mine], project: Mine) -> None:
        """While the job is at it, more or less."""
        await asyncio.sleep(rng.choice((0, 0, 0.05, 0.3)))
        file, job = project.files[-1]
        match rng.choice(("cancel", "file", "project")):
            case "cancel":
                await self._send(rng, self._new("cancel", "POST", f"/jobs/{job}/cancel", job))
            case "file":
                await self._send(rng, self._new("delete_file", "DELETE", f"/projects/{project.id}/files/{file}?cancel=true", file))
                project.files.pop()
            case _:
                op = self._new("delete", "DELETE", f"/projects/{project.id}?cancel=true", project.id)
                await self._send(rng, op)
                self._learn(mine, project, op)

    async def cancel(self, rng: random.Random, mine: list[Mine]) -> None:
        if jobs := [job for project in mine for _, job in project.files]:
            job = rng.choice(jobs[-4:])
            await self._send(rng, self._new("cancel", "POST", f"/jobs/{job}/cancel", job))

    async def delete_example(self, rng: random.Random, mine: list[Mine]) -> None:
        if not (full := [project for project in mine if project.files]):
            return
        project = rng.choice(full)
        page = await self._get(rng, f"/projects/{project.id}/dataset/examples?limit=50&offset={rng.choice((0, 50, 900))}")
        if page and page["items"]:
            id = rng.choice(page["items"])["id"]
            await self._send(rng, self._new("delete_example", "DELETE", f"/projects/{project.id}/dataset/examples/{id}", id))

    async def train(self, rng: random.Random, mine: list[Mine]) -> None:
        if project := await self._trainable(rng, mine):
            await self._train(rng, mine, project, [self._training(project)])

    async def train_twice(self, rng: random.Random, mine: list[Mine]) -> None:
        """Two of a person's windows, at once: a project has one run at a time."""
        if project := await self._trainable(rng, mine):
            await self._train(rng, mine, project, [self._training(project), self._training(project)])

    async def _train(self, rng: random.Random, mine: list[Mine], project: Mine, ops: list[Op]) -> None:
        await asyncio.gather(*(self._send(rng, op, at=n) for n, op in enumerate(ops)))
        for op in ops:
            if op.accepted:
                project.run = op.answer["job_id"]
            self._learn(mine, project, op)
        if any(op.accepted for op in ops) and rng.random() < 0.3:
            await asyncio.sleep(rng.choice((0, 0.3, 1, 4)))
            await self._send(rng, self._new("cancel", "POST", f"/jobs/{project.run}/cancel", project.run))

    async def _trainable(self, rng: random.Random, mine: list[Mine]) -> Mine | None:
        """One with rows, and with a model from now on."""
        if not (full := [project for project in mine if project.files]):
            return None
        project = rng.choice(full)
        if not project.model:
            op = self._new("resolve", "POST", f"/projects/{project.id}/model/resolve", project.id)
            op.body = {"model_id": BASE}
            await self._send(rng, op)
            project.model = op.accepted
            self._learn(mine, project, op)
        return project if project.model else None

    async def cancel_run(self, rng: random.Random, mine: list[Mine]) -> None:
        if trained := [project for project in mine if project.run]:
            await self._send(rng, self._new("cancel_run", "POST", f"/projects/{rng.choice(trained).id}/train/cancel", ""))

    async def export(self, rng: random.Random, mine: list[Mine]) -> None:
        """Not found before a run has succeeded."""
        if trained := [project for project in mine if project.run]:
            project = rng.choice(trained)
            await self._send(rng, self._new("export", "POST", f"/projects/{project.id}/export", project.id, key=self._fresh("key")))

    async def upload_data_set(self, rng: random.Random, mine: list[Mine], *, images: float = 0.3) -> None:
        """A table, or, this often, images."""
        name, are_images = self._fresh("row"), rng.random() < images
        content = zipped({**IMAGES, f"red/{name}.png": IMAGE}) if are_images else table(rng, name)
        file = ("images.zip", content, "application/zip") if are_images else ("table.csv", content, "text/csv")
        op = self._new("upload_data_set", "POST", "/datasets/upload", hashlib.sha256(content).hexdigest(), key=self._fresh("key"))
        await self._send(rng, op, files={"file": file}, data={"name": self._fresh("data")})
        if op.accepted:
            self._brought[rng].append(Brought(op.answer["id"], are_images))

    async def fit(self, rng: random.Random, mine: list[Mine], *, regret: float = 0.25) -> None:
        """Also while it is still being prepared. Short, and a quarter of them are regretted."""
        if not (there := self._brought[rng]):
            await self.upload_data_set(rng, mine)
            return
        data_set, seed = rng.choice(there), self._fresh("seed").rpartition("-")[2]
        op = self._new("fit", "POST", "/training/start", seed, key=self._fresh("key"))
        op.of = data_set.id
        chosen: dict[str, Any] = {"image_size": 32, "batch_size": 8, "epochs": 2} if data_set.images else {"epochs": 5}
        model_type = "resnet18" if data_set.images else "gradient_boosting"
        op.body = {"dataset_id": data_set.id, "model_type": model_type, "hyperparameters": {**chosen, "seed": int(seed)}}
        await self._send(rng, op)
        if not op.accepted:
            return
        data_set.fits.append(op.answer["job_id"])
        if rng.random() < regret:
            await asyncio.sleep(rng.choice((0, 0.3, 1, 4)))
            await self._send(rng, self._new("cancel", "POST", f"/jobs/{data_set.fits[-1]}/cancel", data_set.fits[-1]))

    async def predict(self, rng: random.Random, mine: list[Mine]) -> None:
        """A model says the same as often as it is asked, whoever answers."""
        if not (model := await self._model(rng)):
            return
        op = self._new("predict", "POST", f"/models/{model}/predict", "")
        images = any(data_set.images for data_set in self._brought[rng] if model in data_set.fits)
        inputs = [base64.b64encode(IMAGE).decode()] if images else [[1.5, "red"], [-1.5, "blue"], [None, "grey"]]
        op.body = {"inputs": inputs, "probabilities": True}
        await self._send(rng, op)
        if op.accepted and (first := self._predicted.setdefault(model, op.answer)) != op.answer:
            op.odd.append(f"the model said {first} before, now {op.answer}")

    async def delete_model(self, rng: random.Random, mine: list[Mine]) -> None:
        if model := await self._model(rng):
            op = self._new("delete_model", "DELETE", f"/models/{model}", model)
            await self._send(rng, op)
            for data_set in self._brought[rng]:
                data_set.fits = [fit for fit in data_set.fits if fit != model]

    async def _model(self, rng: random.Random) -> str:
        """Of a run that has come to one."""
        fits = [fit for data_set in self._brought[rng] for fit in data_set.fits]
        for fit in rng.sample(fits, min(LOOKS, len(fits))):
            if (seen := await self._get(rng, f"/training/status/{fit}")) and (model := seen.get("model_id")):
                return model
        return ""

    async def delete_data_set(self, rng: random.Random, mine: list[Mine]) -> None:
        """Its models stay; its person has no use for them any more."""
        if there := self._brought[rng]:
            data_set = rng.choice(there)
            op = self._new("delete_data_set", "DELETE", f"/datasets/{data_set.id}{rng.choice(('', '?cancel=true'))}", data_set.id)
            await self._send(rng, op)
            if op.accepted or op.status == 404:
                there.remove(data_set)

    async def delete_file(self, rng: random.Random, mine: list[Mine]) -> None:
        if full := [project for project in mine if project.files]:
            project = rng.choice(full)
            file, job = rng.choice(project.files)
            op = self._new("delete_file", "DELETE", f"/projects/{project.id}/files/{file}{rng.choice(('', '?cancel=true'))}", file)
            await self._send(rng, op)
            if op.accepted or op.status == 404:
                project.files.remove((file, job))

    async def delete(self, rng: random.Random, mine: list[Mine]) -> None:
        project = rng.choice(mine)
        op = self._new("delete", "DELETE", f"/projects/{project.id}{rng.choice(('', '?cancel=true'))}", project.id)
        await self._send(rng, op)
        self._learn(mine, project, op)

    async def delete_twice(self, rng: random.Random, mine: list[Mine]) -> None:
        project = rng.choice(mine)
        ops = [self._new("delete", "DELETE", f"/projects/{project.id}?cancel=true", project.id) for _ in range(2)]
        await asyncio.gather(*(self._send(rng, op, at=n) for n, op in enumerate(ops)))
        for op in ops:
            self._learn(mine, project, op)

    async def read(self, rng: random.Random, mine: list[Mine]) -> None:
        """One's own writes are there, also right after a 2xx and on the other gateway."""
        project = rng.choice(mine)
        seen = await self._get(rng, f"/projects/{project.id}")
        if seen and seen.get("error_code") == "NOT_FOUND":
            lost = Op("read", project.id, "GET", f"/projects/{project.id}", status=404)
            self.ops.append(lost)

    # How it is sent

    def _creation(self, rng: random.Random) -> Op:
        op = self._new("create", "POST", "/projects", self._fresh("project"), key=self._fresh("key"))
        op.body = {"name": op.token, "description": "d" * rng.choice((0, 20, 400)), "config": {"nested": {"n": rng.randrange(100)}, "train_eval_split": 0.8}}
        return op

    def _renaming(self, project: Mine, if_match: int | None = None) -> Op:
        op = self._new("rename", "PATCH", f"/projects/{project.id}", self._fresh("name"))
        op.if_match = if_match
        op.body = {"name": op.token, "config": {"renamed": op.token}}
        return op

    def _training(self, project: Mine) -> Op:
        """Told by its seed. Short: what is asked for while things go wrong has to be done afterwards."""
        seed = self._fresh("seed").partition("-")[2]
        op = self._new("train", "POST", f"/projects/{project.id}/train/start", seed, key=self._fresh("key"))
        op.body = {"method": "lora", "hyperparams": {"max_steps": 60, "save_steps": 15, "max_seq_length": 64, "lora_r": 4, "seed": int(seed)}}
        return op

    def _new(self, kind: str, method: str, path: str, token: str, *, key: str = "") -> Op:
        op = Op(kind, token, method, path, key=key)
        self.ops.append(op)
        return op

    def _fresh(self, what: str) -> str:
        self._name += 1
        return f"{what}-{self._names}{self._name}"

    def _learn(self, mine: list[Mine], project: Mine, op: Op) -> None:
        if op.accepted and op.version:
            project.version = max(project.version, op.version)
        if (op.kind == "delete" and op.accepted) or op.status == 404:
            mine[:] = [other for other in mine if other is not project]

    async def _get(self, rng: random.Random, path: str) -> Any:
        try:
            answer = await self._client.get(rng.choice(self._urls) + path, headers=self._headers)
        except httpx.TransportError:
            return None
        return answer.json() if answer.status_code in (200, 404) else None

    async def _send(self, rng: random.Random, op: Op, *, at: int | None = None, **form: Any) -> None:
        """Tried on either gateway until somebody gives an answer that settles it."""
        headers = {**self._headers, **({"Idempotency-Key": op.key} if op.key else {})}
        if op.if_match is not None:
            headers["If-Match"] = f'"{op.if_match}"'
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            op.tries += 1
            url = self._urls[at % len(self._urls)] if at is not None and op.tries == 1 else rng.choice(self._urls)
            try:
                answer = await self._client.request(op.method, url + op.path, json=op.body, headers=headers, **form)
            except httpx.ConnectError:
                await asyncio.sleep(rng.uniform(0.05, 0.3))
                continue
            except httpx.TransportError:
                op.doubtful = True
                await asyncio.sleep(rng.uniform(0.05, 0.3))
                continue
            if answer.status_code in RETRIED:
                op.doubtful = True
                _look_at(op, answer)
                await asyncio.sleep(rng.uniform(0.1, 0.6))
                continue
            op.status = answer.status_code
            op.answer = answer.json() if answer.content else None
            op.version = int(answer.headers.get("ETag", '"0"').strip('"'))
            return


def _look_at(op: Op, answer: httpx.Response) -> None:
    """An outage is said in the family's form and with the time to come back; anything else is a bug."""
    if answer.status_code != 503:
        op.odd.append(f"{answer.status_code} {answer.text[:300]}")
    elif "retry-after" not in answer.headers or set(answer.json()) != _FORM[op.path.startswith(("/datasets", "/training", "/models"))]:
        op.odd.append(f"503 without Retry-After or in another form: {answer.text[:300]}")


_FORM = {False: {"detail", "error_code", "context"}, True: {"error", "message", "retry_after", "request_id"}}
"""Of an outage, as finetuneflow and as deep-learning-platform tell it."""


def table(rng: random.Random, token: str) -> bytes:
    """100 to 2,000 rows of a number, a colour and a label; some lack a value, some a column."""
    lines = ["size,colour,label", f"0.0,{token},low"]
    for _ in range(rng.randrange(100, 2001)):
        size = rng.gauss(0, 1)
        values = ["" if rng.random() < 0.02 else f"{size:.3f}", rng.choice(("red", "green", "blue", "grey")), "high" if size > 0 else "low"]
        lines.append(",".join(values if rng.random() < 0.98 else values[:2]))
    return "\n".join(lines).encode()


def rows(rng: random.Random, token: str) -> bytes:
    """200 to 3,000 rows as JSON lines; some can't be used: not JSON, doubled, empty, no object."""
    lines: list[str] = []
    for n in range(rng.randrange(200, 3001)):
        match rng.randrange(40):
            case 0:
                lines.append("{broken " + str(n))
            case 1:
                lines.append(lines[-1] if lines else "[]")
            case 2:
                lines.append("")
            case 3:
                lines.append("[1, 2]")
            case _:
                lines.append(json.dumps({"instruction": f"{token} says {n} ä", "output": "x" * rng.randrange(5, 60)}, ensure_ascii=False))
    return "\n".join(lines).encode()

"""Webhook endpoints that follow a run of the platform: what each of them got is kept for the checker."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import httpx
from standardwebhooks import WebhookVerificationError

from tests.kit.evidence import Delivery
from tests.kit.receiver import OK, Answer, Got, Receiver, receiving, status

EGRESS = {"TRAINYARD_EGRESS_ALLOW": "127.0.0.0/8"}
REFUSED = (7, 60)
"""Which of the things that an endpoint is told are refused at first: each of them costs it some seconds."""


@dataclass
class Endpoint:
    id: str
    secret: str
    headers: Mapping[str, str]


@dataclass
class Hooks:
    receiver: Receiver
    deliveries: list[Delivery] = field(default_factory=list)
    _endpoints: dict[str, Endpoint] = field(default_factory=dict)
    """By path."""
    _told: dict[str, list[str]] = field(default_factory=dict)

    async def register(self, url: str, path: str, *events: str, headers: Mapping[str, str], format: str = "cloudevents") -> None:
        body = {"url": self.receiver.url(path), "events": events, "format": format}
        async with httpx.AsyncClient(base_url=url, timeout=30) as api:
            made = await api.post("/webhooks", json=body, headers=headers)
        assert made.status_code == 201, made.text
        self._endpoints[path] = Endpoint(made.json()["id"], made.json()["secret"], headers)

    async def end(self, urls: Sequence[str]) -> None:
        """Nothing is told of them any more, and nothing is told to them."""
        async with httpx.AsyncClient(base_url=urls[0], timeout=30) as api:
            gone = [await api.delete(f"/webhooks/{endpoint.id}", headers=endpoint.headers) for endpoint in self._endpoints.values()]
        assert [answer.status_code for answer in gone] == [204] * len(gone)

    def answer(self, got: Got) -> Answer:
        told = self._told.setdefault(got.path, [])
        new = got.id not in told
        if new:
            told.append(got.id)
        taken = not (new and len(told) in REFUSED)
        endpoint = self._endpoints.get(got.path)
        signed = endpoint is not None and _signed(got, endpoint.secret)
        self.deliveries.append(Delivery(url=self.receiver.url(got.path), id=got.id, seq=got.seq, body=got.body, taken=taken, signed=signed))
        return OK if taken else status(503)


def _signed(got: Got, secret: str) -> bool:
    try:
        got.verify(secret)
    except WebhookVerificationError:
        return False
    return True


@asynccontextmanager
async def hooks() -> AsyncIterator[Hooks]:
    async with receiving() as receiver:
        made = Hooks(receiver)
        receiver.answer = made.answer
        yield made

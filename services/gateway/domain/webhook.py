"""What can be done to a webhook endpoint, by people and by whoever sends to it."""

from datetime import datetime, timedelta
from fnmatch import fnmatchcase

import msgspec

from libs.events import (
    EVENTS,
    Event,
    Recorded,
    WebhookCreated,
    WebhookDeleted,
    WebhookDelivered,
    WebhookDisabled,
    WebhookReplayRequested,
    WebhookSecretRotated,
    WebhookTestRequested,
    WebhookUpdated,
)
from libs.events.subjects import PRIVATE_CATEGORIES
from services.gateway.domain.errors import IdempotencyKeyReused, NotFound, TooManyWebhooks, UnknownEvents, WebhookInactive

CONTRACT = ("training.started", "training.progress", "training.completed", "training.failed", "dataset.processed", "dataset.failed")
"""The names that deep-learning-platform's document has."""


class Webhook(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    url: str
    secret: str
    events: list[str]
    format: str
    description: str
    created_at: datetime
    updated_at: datetime
    active: bool = True
    why_inactive: str = ""
    previous_secret: str = ""
    previous_until: datetime | None = None
    delivered: int = 0
    request: str = ""
    deleted: bool = False


class CreateWebhook(msgspec.Struct, frozen=True, kw_only=True):
    """`secret` is encrypted already; so are those of the other commands."""

    webhook_id: str
    url: str
    secret: str
    events: list[str]
    format: str
    description: str
    request: str
    others: int = 0
    """Endpoints that the workspace has already, as the view says: those that are being made at the same moment aren't among them."""
    most: int = 100


class ChangeWebhook(msgspec.Struct, frozen=True, kw_only=True):
    """None leaves a field as it is; a new `secret` replaces the old one after `overlap`."""

    webhook_id: str
    url: str | None = None
    events: list[str] | None = None
    format: str | None = None
    description: str | None = None
    active: bool | None = None
    secret: str = ""
    overlap: timedelta = timedelta()


class DeleteWebhook(msgspec.Struct, frozen=True, kw_only=True):
    webhook_id: str


class PingWebhook(msgspec.Struct, frozen=True, kw_only=True):
    webhook_id: str


class ReplayWebhook(msgspec.Struct, frozen=True, kw_only=True):
    webhook_id: str
    start: int


class DisableWebhook(msgspec.Struct, frozen=True, kw_only=True):
    webhook_id: str
    reason: str
    message: str


class ReportDelivered(msgspec.Struct, frozen=True, kw_only=True):
    webhook_id: str
    up_to: int


Command = CreateWebhook | ChangeWebhook | DeleteWebhook | PingWebhook | ReplayWebhook | DisableWebhook | ReportDelivered


def evolve(webhook: Webhook | None, recorded: Recorded) -> Webhook | None:
    event = recorded.event
    if isinstance(event, WebhookCreated):
        return Webhook(
            id=event.webhook_id,
            url=event.url,
            secret=event.secret,
            events=event.events,
            format=event.format,
            description=event.description,
            created_at=recorded.at,
            updated_at=recorded.at,
            delivered=recorded.seq,
            request=event.request,
        )
    if webhook is None:
        return None
    match event:
        case WebhookUpdated():
            change = {field: value for field in _FIELDS if (value := getattr(event, field)) is not None}
            why = {} if event.active is None else {"why_inactive": "" if event.active else "by_owner"}
            return msgspec.structs.replace(webhook, **change, **why, updated_at=recorded.at)
        case WebhookSecretRotated(secret=secret, previous=previous, overlap_seconds=seconds):
            until = recorded.at + timedelta(seconds=seconds)
            return msgspec.structs.replace(webhook, secret=secret, previous_secret=previous, previous_until=until, updated_at=recorded.at)
        case WebhookDisabled(reason=reason):
            return msgspec.structs.replace(webhook, active=False, why_inactive=reason, updated_at=recorded.at)
        case WebhookDelivered(up_to=up_to):
            return msgspec.structs.replace(webhook, delivered=up_to)
        case WebhookDeleted():
            return msgspec.structs.replace(webhook, deleted=True)
        case _:
            return webhook


_FIELDS = ("url", "events", "format", "description", "active")


def decide(webhook: Webhook | None, command: Command) -> list[Event]:
    if isinstance(command, CreateWebhook):
        return _create(webhook, command)
    if webhook is None or webhook.deleted:
        raise NotFound(what="Webhook", id=command.webhook_id)
    match command:
        case ChangeWebhook():
            return _change(webhook, command)
        case DeleteWebhook():
            return [WebhookDeleted(webhook_id=webhook.id)]
        case PingWebhook():
            _need_active(webhook)
            return [WebhookTestRequested(webhook_id=webhook.id)]
        case ReplayWebhook(start=start):
            _need_active(webhook)
            return [WebhookReplayRequested(webhook_id=webhook.id, start=start)]
        case DisableWebhook(reason=reason, message=message):
            return [WebhookDisabled(webhook_id=webhook.id, reason=reason, message=message)] if webhook.active else []
        case ReportDelivered(up_to=up_to):
            return [] if webhook.delivered == up_to else [WebhookDelivered(webhook_id=webhook.id, up_to=up_to)]


def _create(webhook: Webhook | None, command: CreateWebhook) -> list[Event]:
    _need_known(command.events, command.format)
    if webhook is None:
        if command.others >= command.most:
            raise TooManyWebhooks(most=command.most)
        return [
            WebhookCreated(
                webhook_id=command.webhook_id,
                url=command.url,
                secret=command.secret,
                events=command.events,
                format=command.format,
                description=command.description,
                request=command.request,
            )
        ]
    if webhook.request != command.request:
        raise IdempotencyKeyReused(id=webhook.id)
    return []  # the same request again


def _change(webhook: Webhook, command: ChangeWebhook) -> list[Event]:
    _need_known(webhook.events if command.events is None else command.events, command.format or webhook.format)
    wanted = {field: value for field in _FIELDS if (value := getattr(command, field)) not in (None, getattr(webhook, field))}
    changed: list[Event] = [WebhookUpdated(webhook_id=webhook.id, **wanted)] if wanted else []
    if not command.secret:
        return changed
    overlap = int(command.overlap.total_seconds())
    return [*changed, WebhookSecretRotated(webhook_id=webhook.id, secret=command.secret, previous=webhook.secret, overlap_seconds=overlap)]


def _need_known(patterns: list[str], format: str) -> None:
    names = CONTRACT if format == "contract" else [name for name in EVENTS if name.split(".")[0] not in PRIVATE_CATEGORIES]
    if unknown := [pattern for pattern in patterns if not any(fnmatchcase(name, pattern) for name in names)]:
        raise UnknownEvents(patterns=", ".join(unknown), format=format, names=", ".join(sorted(names)))


def _need_active(webhook: Webhook) -> None:
    if not webhook.active:
        raise WebhookInactive(reason=webhook.why_inactive)

"""Webhooks: endpoints that are told of a workspace's facts. They hold secrets, so that none of this is on the live feed. The gateway is the only writer."""

from .envelope import Event


class WebhookCreated(Event, frozen=True, kw_only=True, tag="webhook.created"):
    """From here on `url` is sent what `events` name (patterns like `training.*`). `format`: the contract's five bodies, or the facts as CloudEvents."""

    KEY = ("webhook_id",)
    FOUNDS = True
    webhook_id: str
    url: str
    secret: str
    """Encrypted with a key that only the gateway has."""
    events: list[str] = []
    format: str = "contract"
    description: str = ""
    request: str = ""
    """Fingerprint of the request, so that a repeated Idempotency-Key is told from a re-used one."""


class WebhookUpdated(Event, frozen=True, kw_only=True, tag="webhook.updated"):
    """What was changed, and only that. `active` true sets out again from now."""

    KEY = ("webhook_id",)
    webhook_id: str
    url: str | None = None
    events: list[str] | None = None
    format: str | None = None
    description: str | None = None
    active: bool | None = None


class WebhookSecretRotated(Event, frozen=True, kw_only=True, tag="webhook.secret_rotated"):
    """For `overlap_seconds` what is sent carries the signatures of both secrets."""

    KEY = ("webhook_id",)
    webhook_id: str
    secret: str
    previous: str = ""
    overlap_seconds: int = 0


class WebhookDisabled(Event, frozen=True, kw_only=True, tag="webhook.disabled"):
    """Nothing more is sent: the receiver said so (`gone`) or failed for days (`failing`)."""

    KEY = ("webhook_id",)
    webhook_id: str
    reason: str
    message: str = ""


class WebhookDeleted(Event, frozen=True, kw_only=True, tag="webhook.deleted"):
    KEY = ("webhook_id",)
    webhook_id: str


class WebhookTestRequested(Event, frozen=True, kw_only=True, tag="webhook.test_requested"):
    """A ping, sent in its turn."""

    KEY = ("webhook_id",)
    webhook_id: str


class WebhookReplayRequested(Event, frozen=True, kw_only=True, tag="webhook.replay_requested"):
    """Everything from this position of the log on is sent once more."""

    KEY = ("webhook_id",)
    webhook_id: str
    start: int


class WebhookDelivered(Event, frozen=True, kw_only=True, tag="webhook.delivered"):
    """Everything up to this position has been sent. At most once a minute: from here a lost database goes on."""

    KEY = ("webhook_id",)
    webhook_id: str
    up_to: int

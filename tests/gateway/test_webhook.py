"""What can be done to a webhook endpoint."""

from datetime import timedelta

import pytest

from libs.events import (
    WebhookCreated,
    WebhookDeleted,
    WebhookDelivered,
    WebhookDisabled,
    WebhookReplayRequested,
    WebhookSecretRotated,
    WebhookTestRequested,
    WebhookUpdated,
)
from services.gateway.domain.errors import IdempotencyKeyReused, NotFound, UnknownEvents, WebhookInactive
from services.gateway.domain.webhook import (
    ChangeWebhook,
    CreateWebhook,
    DeleteWebhook,
    DisableWebhook,
    PingWebhook,
    ReplayWebhook,
    ReportDelivered,
    decide,
    evolve,
)
from tests.kit.given import BEGINNING, given

CREATE = CreateWebhook(webhook_id="w", url="https://a", secret="sealed", events=[], format="contract", description="", request="r")
CREATED = WebhookCreated(webhook_id="w", url="https://a", secret="sealed", request="r")
DISABLED = WebhookDisabled(webhook_id="w", reason="gone")


def test_an_endpoint_is_registered_once():
    assert decide(None, CREATE) == [CREATED]
    assert decide(given(evolve, CREATED), CREATE) == []


def test_another_registration_under_the_same_key_is_refused():
    with pytest.raises(IdempotencyKeyReused):
        decide(given(evolve, WebhookCreated(webhook_id="w", url="https://b", secret="s", request="other")), CREATE)


@pytest.mark.parametrize(("format", "events"), [("contract", ["training.*", "dataset.processed"]), ("cloudevents", ["*", "project.*", "export.completed"])])
def test_patterns_that_name_something_are_taken(format: str, events: list[str]):
    change = ChangeWebhook(webhook_id="w", format=format, events=events)

    assert isinstance(decide(given(evolve, CREATED), change)[0], WebhookUpdated)


@pytest.mark.parametrize(
    ("format", "event"), [("contract", "project.created"), ("cloudevents", "user.*"), ("cloudevents", "webhook.created"), ("cloudevents", "x")]
)
def test_patterns_that_name_nothing_that_is_sent_are_refused(format: str, event: str):
    with pytest.raises(UnknownEvents):
        decide(given(evolve, CREATED), ChangeWebhook(webhook_id="w", format=format, events=[event]))


def test_a_format_to_which_the_patterns_do_not_fit_is_refused():
    created = WebhookCreated(webhook_id="w", url="https://a", secret="s", events=["project.*"], format="cloudevents")

    with pytest.raises(UnknownEvents):
        decide(given(evolve, created), ChangeWebhook(webhook_id="w", format="contract"))


def test_only_what_changes_is_written():
    assert decide(given(evolve, CREATED), ChangeWebhook(webhook_id="w", url="https://a", active=True)) == []
    assert decide(given(evolve, CREATED), ChangeWebhook(webhook_id="w", url="https://b")) == [WebhookUpdated(webhook_id="w", url="https://b")]


def test_a_rotation_carries_the_secret_that_still_signs_for_a_while():
    (rotated,) = decide(given(evolve, CREATED), ChangeWebhook(webhook_id="w", secret="newer", overlap=timedelta(hours=1)))

    assert rotated == WebhookSecretRotated(webhook_id="w", secret="newer", previous="sealed", overlap_seconds=3600)
    after = given(evolve, CREATED, rotated)
    assert (after.secret, after.previous_secret, after.previous_until) == ("newer", "sealed", BEGINNING + timedelta(seconds=2, hours=1))


def test_who_is_disabled_is_neither_pinged_nor_sent_a_replay_until_enabled():
    disabled = given(evolve, CREATED, DISABLED)

    for command in (PingWebhook(webhook_id="w"), ReplayWebhook(webhook_id="w", start=1)):
        with pytest.raises(WebhookInactive):
            decide(disabled, command)
    assert decide(disabled, DisableWebhook(webhook_id="w", reason="failing", message="")) == []
    enabled = given(evolve, CREATED, DISABLED, *decide(disabled, ChangeWebhook(webhook_id="w", active=True)))
    assert (enabled.active, enabled.why_inactive) == (True, "")
    assert decide(enabled, PingWebhook(webhook_id="w")) == [WebhookTestRequested(webhook_id="w")]
    assert decide(enabled, ReplayWebhook(webhook_id="w", start=7)) == [WebhookReplayRequested(webhook_id="w", start=7)]


def test_how_far_it_has_come_is_reported_once():
    assert decide(given(evolve, CREATED), ReportDelivered(webhook_id="w", up_to=9)) == [WebhookDelivered(webhook_id="w", up_to=9)]
    assert decide(given(evolve, CREATED, WebhookDelivered(webhook_id="w", up_to=9)), ReportDelivered(webhook_id="w", up_to=9)) == []


@pytest.mark.parametrize("command", [DeleteWebhook(webhook_id="w"), PingWebhook(webhook_id="w"), ChangeWebhook(webhook_id="w")])
def test_what_is_deleted_is_not_there(command: DeleteWebhook | PingWebhook | ChangeWebhook):
    with pytest.raises(NotFound):
        decide(given(evolve, CREATED, WebhookDeleted(webhook_id="w")), command)

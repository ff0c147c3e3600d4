"""Joining: the same answer for everybody, nothing by GET, one welcome."""

import datetime as dt
import re
from collections.abc import Callable
from typing import Any

import pytest
import time_machine
from django.conf import settings
from django.core import mail
from django.test import Client
from django.utils import timezone

from newsletter import sweeper
from newsletter.celery import app
from subscribers import emails, subscription, tokens
from subscribers.models import Consent, Subscriber, Suppression, SystemMail

Status = Subscriber.Status


def test_a_new_reader_is_pending_and_owed_a_confirmation(join: Callable[..., Any]) -> None:
    response = join("New.Reader@Example.org", source="profile")
    reader = Subscriber.objects.get()
    assert (response.status_code, response.headers["Location"]) == (302, "/subscribe/check-your-inbox/")
    assert (reader.key, reader.status, reader.source) == ("new.reader@example.org", Status.PENDING, "profile")
    assert set(reader.system_mail.due().values_list("kind", flat=True)) == {SystemMail.Kind.CONFIRM}
    assert reader.consents.get().wording


def test_each_owner_is_told_the_truth_by_mail(
    join: Callable[..., Any], alice: Subscriber, carol: Subscriber, dave: Subscriber
) -> None:
    for reader in (alice, carol, dave):
        join(reader.address)
    assert set(SystemMail.objects.values_list("subscriber_id", "kind")) == {
        (alice.pk, "already"),
        (carol.pk, "confirm"),
    }


def test_one_person_has_one_row_however_he_spells_it(join: Callable[..., Any]) -> None:
    for address in ("Ada@Example.org", "ada@example.ORG", "ada@EXAMPLE.org "):
        join(address)
    assert Subscriber.objects.count() == 1


@pytest.mark.parametrize(
    "address", ["", "ada", "ada@", "ada@example", "a b@example.org", "ada@exa mple.org", "x" * 400]
)
def test_a_malformed_address_is_refused_beside_the_field(join: Callable[..., Any], address: str) -> None:
    response = join(address)
    assert response.status_code == 422
    assert b'role="alert"' in response.content
    assert not Subscriber.objects.exists()


def test_no_anonymous_answer_sets_a_cookie(client: Client, join: Callable[..., Any]) -> None:
    assert not join("ada@example.org").cookies
    assert not client.get("/subscribe/").cookies
    assert not client.get("/subscribe/check-your-inbox/").cookies


def test_abu_2_a_get_of_the_confirmation_changes_nothing(
    client: Client, publication: object, bob: Subscriber, confirm_path: Any, row: Any
) -> None:
    before = row(bob)
    for _n in range(3):
        page = client.get(confirm_path(bob))
        assert page.status_code == 200
        assert "<script" not in page.text  # nothing presses the button by itself
    client.head(confirm_path(bob))
    assert row(bob) == before


def test_abu_2_confirming_twice_says_so_and_sends_one_welcome(
    client: Client, publication: object, bob: Subscriber, confirm_path: Any
) -> None:
    path = confirm_path(bob)
    first, second = (client.post(path) for _n in range(2))
    assert (first.status_code, second.status_code) == (200, 200)
    assert "<h1>You are subscribed</h1>" in first.text
    assert "<h1>You have confirmed already</h1>" in second.text
    bob.refresh_from_db()
    assert (bob.status, bob.system_mail.filter(kind="welcome").count()) == (Status.ACTIVE, 1)
    assert bob.consents.filter(kind=Consent.Kind.CONFIRMED).count() == 1


def test_a_confirmation_from_before_leaving_brings_nobody_back(
    client: Client, publication: object, bob: Subscriber, confirm_path: Any
) -> None:
    path = confirm_path(bob)
    subscription.unsubscribe(bob.pk)
    assert client.post(path).status_code == 410
    bob.refresh_from_db()
    assert bob.status == Status.UNSUBSCRIBED


def test_a_confirmation_dies_after_seven_days(
    client: Client, publication: object, bob: Subscriber, confirm_path: Any
) -> None:
    path = confirm_path(bob)
    with time_machine.travel(timezone.now() + dt.timedelta(days=8)):
        assert client.post(path).status_code == 410


def test_a_token_of_another_purpose_or_a_forged_one_is_worth_nothing(
    client: Client, publication: object, bob: Subscriber
) -> None:
    other = tokens.sign(bob.pk, "", purpose=tokens.NEVER)
    for token in (other, "forged", other[:-2]):
        assert client.post(f"/subscribe/confirm/{token}/").status_code == 410
    bob.refresh_from_db()
    assert bob.status == Status.PENDING


def test_abu_1_never_again_suppresses_by_post_alone(client: Client, publication: object, bob: Subscriber) -> None:
    url = emails.never_url(bob)
    path = url[url.index("/never/") :]
    client.get(path)
    assert not Suppression.objects.exists()
    client.post(path)
    bob.refresh_from_db()
    assert (bob.suppressed, bob.status) == (True, Status.UNSUBSCRIBED)


def test_never_again_lets_nobody_go_who_has_another_address_by_now(
    client: Client, publication: object, alice: Subscriber
) -> None:
    url = emails.never_url(alice)
    alice.address = "alice@example.com"
    alice.save()
    client.post(url[url.index("/never/") :])
    alice.refresh_from_db()
    assert (alice.status, alice.suppressed) == (Status.ACTIVE, False)
    assert Suppression.objects.exists()


def test_a_suppressed_address_is_sent_nothing(join: Callable[..., Any], dave: Subscriber) -> None:
    join(dave.address)
    assert not SystemMail.objects.exists()


def test_abu_1_the_confirmation_is_small_plain_and_says_nothing_that_the_submitter_typed(
    client: Client, join: Callable[..., Any]
) -> None:
    join("ada@example.org", source="BUY PILLS", name="BUY PILLS", utm_campaign="BUY PILLS", website="")
    assert emails.send_all_due(limit=10) == 1
    sent = mail.outbox[0]
    text = str(sent.body)
    assert "BUY PILLS" not in sent.message().as_string()
    assert len(sent.message().as_bytes()) < 20_000
    assert f"(Europe/London) somebody, we hope you, entered this address at {settings.SITE_URL}" in text
    assert "It was not you? Then do nothing" in text
    never = re.search(r"/never/[^/]+/", text)
    assert never
    client.post(never[0])
    assert Subscriber.objects.get().suppressed
    assert "List-Unsubscribe" not in sent.message()
    assert sent.message()["Auto-Submitted"] == "auto-generated"


@pytest.mark.django_db(transaction=True)
def test_a_dead_broker_costs_no_sign_up(client: Client, publication: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app.conf, "broker_url", "redis://127.0.0.1:9/0")
    monkeypatch.setattr(app.amqp, "_producer_pool", None)
    data = {"address": "ada@example.org", "token": tokens.form_token("subscribe")}
    assert client.post("/subscribe/form/", data).status_code == 302
    sweeper.sweep()
    assert [message.to for message in mail.outbox] == [["ada@example.org"]]

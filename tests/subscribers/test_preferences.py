"""Preferences: no password; a key by mail that opens once, a short session of its own, and Django's CSRF check."""

import re
from typing import Any

import pytest
from django.core import mail
from django.test import Client

from subscribers import emails, submissions
from subscribers.models import MagicLink, Subscriber, SystemMail

Status = Subscriber.Status
pytestmark = pytest.mark.usefixtures("publication")


def ask(client: Client, address: str) -> Any:
    response = client.post("/preferences/", {"address": address})
    submissions.decide_waiting()
    return response


def mailed_path() -> str:
    emails.send_all_due(limit=10)
    found = re.search(r"/preferences/open/[\w-]+/", str(mail.outbox[-1].body))
    assert found
    return found.group()


@pytest.fixture
def path(client: Client, alice: Subscriber) -> str:
    ask(client, alice.address)
    return mailed_path()


def test_every_address_gets_the_same_answer(client: Client, alice: Subscriber, dave: Subscriber) -> None:
    answers = [ask(client, address) for address in ("nobody@example.org", alice.address, dave.address)]
    assert len({(answer.status_code, answer.content, answer.headers["Location"]) for answer in answers}) == 1
    assert list(SystemMail.objects.values_list("subscriber_id", flat=True)) == [alice.pk]


def test_a_scanner_that_follows_the_link_uses_nothing_up(client: Client, path: str) -> None:
    for _n in range(3):
        client.get(path)
    assert MagicLink.objects.get().used_at is None
    assert client.post(path).status_code == 302


def test_a_forged_session_is_asked_for_its_address(client: Client, alice: Subscriber) -> None:
    client.cookies["reader"] = "forged"
    assert alice.address.encode() not in client.get("/preferences/").content


def test_a_reader_changes_his_name_leaves_and_returns(client: Client, path: str, alice: Subscriber) -> None:
    client.post(path)
    client.post("/preferences/", {"act": "save", "name": "Ada", "frequency": "every"})
    page = client.post("/preferences/", {"act": "leave"})
    alice.refresh_from_db()
    assert (alice.name, alice.status) == ("Ada", Status.UNSUBSCRIBED)
    client.post("/subscribe/undo/", {"key": page.context["undo"]})
    alice.refresh_from_db()
    assert alice.status == Status.ACTIVE


def test_a_name_with_a_line_break_is_refused(client: Client, path: str, alice: Subscriber) -> None:
    client.post(path)
    for name in ("Ada\r\nBcc: x@example.org", "Ada\x00", "Ada\u2028x"):
        assert client.post("/preferences/", {"act": "save", "name": name}).status_code == 422
    alice.refresh_from_db()
    assert alice.name == "Alice"


def test_another_site_can_not_act_in_a_session(path: str, alice: Subscriber) -> None:
    client = Client(enforce_csrf_checks=True)
    client.post(path)
    assert client.post("/preferences/", {"act": "leave"}).status_code == 403
    alice.refresh_from_db()
    assert alice.status == Status.ACTIVE

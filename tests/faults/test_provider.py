"""A provider's API is late, asks to wait, or breaks down around the moment at which it takes a copy."""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Iterator
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from django.test import Client
from django.urls import reverse
from django.utils import timezone
from django.utils.html import escape

from newsletter import delivery, reconciliation
from newsletter.models import Delivery, DeliveryEvent, Issue
from posts.models import Publication
from subscribers.models import Subscriber, SystemMail
from tests.faults.conftest import assert_promise, logged
from tests.faults.runs import HURRY, number, run, run_until, sending, step
from tests.provider import Answer, ProviderApi, Request, refusal

RECIPIENTS = int(os.environ.get("RECIPIENTS", "200"))
CONNECTIONS = 4
TIMEOUT = 1.0  # seconds that our client waits for an answer
State = Delivery.State
pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("publication")]


@pytest.fixture
def provider(tmp_path: Path, settings: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[ProviderApi]:
    """A provider that the settings name as the way out, through anymail's backend for Postmark."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name, seconds in HURRY.items():
        setattr(settings, name, seconds)
    with ProviderApi(tmp_path / "recipients.log") as api:
        settings.SEND_BACKEND = "anymail.backends.postmark.EmailBackend"
        settings.ANYMAIL = {**api.postmark, "REQUESTS_TIMEOUT": TIMEOUT}
        settings.SMTP_CONNECTIONS = CONNECTIONS
        settings.UNKNOWN_SETTLE_SECONDS = 2 * TIMEOUT
        yield api


def each_twentieth(request: Request, *, plus: int = 0) -> bool:
    return number(request.recipient) % 20 == plus


def states(issue: Issue) -> dict[str, str]:
    return dict(issue.deliveries.values_list("address", "state"))


def test_an_issue_goes_to_everyone_once_through_a_provider(provider: ProviderApi) -> None:
    issue = sending(RECIPIENTS)
    run(issue)
    assert_promise(issue, provider, unknown_at_most=0)
    assert (issue.state, len(logged(provider))) == (Issue.State.COMPLETED, RECIPIENTS)
    assert provider.connections == CONNECTIONS


def test_an_event_with_the_providers_id_finds_its_copy(provider: ProviderApi) -> None:
    issue = sending(3)
    run(issue)
    row = Delivery.objects.get(provider_id=provider.ids["reader1@example.org"])
    assert (row.address, row.issue) == ("reader1@example.org", issue)


@pytest.mark.long
def test_fi_35_an_answer_after_the_clients_patience_is_unknown_and_nobody_gets_two(provider: ProviderApi) -> None:
    late = Answer(seconds=1.5 * TIMEOUT)
    provider.script = lambda request: late if each_twentieth(request) else None
    issue = sending(RECIPIENTS)
    step(issue)
    doubts = issue.deliveries.filter(state=State.UNCERTAIN)
    assert {number(row.address) % 20 for row in doubts} == {0}
    assert doubts.count() == RECIPIENTS // 20
    for row in doubts[:3]:  # an opening was heard of these
        DeliveryEvent.objects.create(delivery=row, kind="opened", provider_id=f"event:{row.pk}")
    run_until(issue, lambda: not issue.deliveries.filter(state=State.UNCERTAIN).exists())
    assert_promise(issue, provider, unknown_at_most=RECIPIENTS // 20 - 3)
    assert (issue.state, issue.counts().unknown) == (Issue.State.NEEDS_REVIEW, RECIPIENTS // 20 - 3)
    assert len(logged(provider)) == RECIPIENTS


def wait_of(kind: str, seconds: float) -> Answer:
    """Return an answer that asks to wait."""
    if kind == "seconds":
        return Answer(429, {"Message": "Slow down"}, {"Retry-After": str(int(seconds))})
    if kind == "date":
        at = timezone.now() + dt.timedelta(seconds=seconds + 1)
        return Answer(429, {"Message": "Slow down"}, {"Retry-After": format_datetime(at, usegmt=True)})
    if kind == "420":
        return Answer(420, {"Message": "Enough for this day"})
    return Answer(429, {"Message": "You have reached your daily email sending quota."})


@pytest.mark.parametrize(
    "kind", ["seconds", *(pytest.param(kind, marks=pytest.mark.long) for kind in ("date", "420", "quota"))]
)
def test_fi_36_a_provider_that_asks_to_wait_pauses_the_issue_which_goes_on_by_itself(
    provider: ProviderApi, settings: Any, admin_client: Client, kind: str
) -> None:
    settings.QUOTA_SECONDS = 2.0
    asked: list[dt.datetime] = []

    def script(request: Request) -> Answer | None:
        if len(provider.recipients) < RECIPIENTS // 2 or (
            asked and timezone.now() > asked[0] + dt.timedelta(seconds=2)
        ):
            return None
        asked.append(timezone.now())
        return wait_of(kind, 2)

    provider.script = script
    issue = sending(RECIPIENTS)
    delivery.send_due(issue.pk, seconds=60)
    issue.refresh_from_db()
    assert (issue.state, issue.completed_at) == (Issue.State.PAUSED, None)
    assert issue.resume_at is not None
    assert asked[0] + dt.timedelta(seconds=1.5) < issue.resume_at < asked[0] + dt.timedelta(seconds=6)
    assert 1 <= len(asked) <= CONNECTIONS
    assert issue.counts().sent == len(logged(provider)) < RECIPIENTS
    step(issue)  # sweeps too, and before its time nothing goes
    told = SystemMail.objects.get(context__event="paused").context
    assert (told["resumes_at"], told["error"]) == (issue.resume_at.isoformat(), issue.pause_reason)
    page = admin_client.get(reverse("admin:newsletter_issue_change", args=[issue.pk])).text
    assert escape(issue.pause_reason) in page
    assert "by itself" in page
    run(issue)
    assert_promise(issue, provider, unknown_at_most=0)
    assert (issue.state, issue.resume_at, len(logged(provider))) == (Issue.State.COMPLETED, None, RECIPIENTS)


@pytest.mark.parametrize("cut", [False, pytest.param(True, marks=pytest.mark.long)], ids=["500", "reset"])
def test_fi_37_a_provider_that_breaks_before_or_after_it_took_a_copy_leaves_it_unknown_never_twice(
    provider: ProviderApi, cut: bool
) -> None:
    def script(request: Request) -> Answer | None:
        if each_twentieth(request):
            return Answer(500, {"Message": "Oops"}, taken=True, cut=cut)
        if each_twentieth(request, plus=7):
            return Answer(500, {"Message": "Oops"}, taken=False, cut=cut)
        return None

    provider.script = script
    issue = sending(RECIPIENTS)
    step(issue)
    assert issue.counts().unknown == RECIPIENTS // 10
    run_until(issue, lambda: not issue.deliveries.filter(state=State.UNCERTAIN).exists())
    assert_promise(issue, provider, unknown_at_most=RECIPIENTS // 10)
    assert (issue.state, len(logged(provider))) == (Issue.State.NEEDS_REVIEW, RECIPIENTS * 19 // 20)
    decide_by(provider, issue)
    provider.script = lambda request: None
    run(issue)
    assert_promise(issue, provider, unknown_at_most=0)
    assert (issue.state, len(logged(provider))) == (Issue.State.COMPLETED, RECIPIENTS)


def decide_by(provider: ProviderApi, issue: Issue) -> None:
    """Decide about each unknown copy as an author does who looks it up on the provider's pages."""
    unknown = dict(issue.deliveries.unknown().values_list("address", "pk"))
    taken = [pk for address, pk in unknown.items() if provider.recipients[address]]
    others = [pk for address, pk in unknown.items() if not provider.recipients[address]]
    assert reconciliation.decide(issue, taken, "sent", by="author") == len(taken)
    assert reconciliation.decide(issue, others, "again", by="author") == len(others)


def test_a_connection_reset_before_the_request_is_read_is_unknown_too(provider: ProviderApi) -> None:
    provider.deaf = lambda number: number in (20, 40)
    issue = sending(60)
    step(issue)
    assert sorted(states(issue).values()).count(State.UNCERTAIN) == 2
    assert (len(logged(provider)), issue.counts().sent) == (58, 58)


def test_a_busy_provider_is_asked_again_later(provider: ProviderApi) -> None:
    provider.script = lambda request: Answer(503) if request.number <= 3 else None
    issue = sending(20)
    step(issue)
    assert issue.deliveries.filter(state=State.DEFERRED, reply_class="rate").count() == 3
    run(issue)
    assert_promise(issue, provider, unknown_at_most=0)
    assert issue.state == Issue.State.COMPLETED


def test_a_refused_recipient_is_rejected_alone(provider: ProviderApi) -> None:
    inactive = "Found inactive addresses: reader2@example.org.\nInactive recipients are ones that have bounced."
    invalid = "Invalid 'To' address: 'reader4@example.org'."
    told = {"reader2@example.org": refusal(406, inactive), "reader4@example.org": refusal(300, invalid)}
    provider.script = lambda request: told.get(request.recipient)
    issue = sending(6)
    run(issue)
    rejected = issue.deliveries.filter(state=State.REJECTED, reply_class="hard_address", phase="api")
    assert {row.address for row in rejected} == set(told)
    assert (issue.state, len(logged(provider))) == (Issue.State.COMPLETED_WITH_FAILURES, 4)


@pytest.mark.parametrize(
    "answer",
    [
        Answer(401, {"ErrorCode": 10, "Message": "Bad token"}),
        Answer(404, b"<h1>Not Found</h1>"),
        refusal(400, "The From address you supplied is not a Sender Signature on your account."),
    ],
    ids=["token", "address of the API", "signature"],
)
def test_what_is_wrong_with_us_pauses_the_issue_and_touches_no_reader(
    provider: ProviderApi, settings: Any, answer: Answer
) -> None:
    provider.script = lambda request: answer
    issue = sending(RECIPIENTS)
    before = list(Subscriber.objects.order_by("pk").values_list("pk", "status", "suppressed"))
    step(issue)
    assert (issue.state, issue.resume_at) == (Issue.State.PAUSED, None)
    assert settings.BREAKER_FAULTS <= provider.count <= settings.BREAKER_FAULTS + CONNECTIONS
    assert list(Subscriber.objects.order_by("pk").values_list("pk", "status", "suppressed")) == before


def test_a_provider_that_never_answers_pauses_the_issue_before_all_copies_are_unknown(
    provider: ProviderApi, settings: Any
) -> None:
    provider.script = lambda request: Answer(502, taken=False)
    issue = sending(RECIPIENTS)
    step(issue)
    assert (issue.state, issue.resume_at) == (Issue.State.PAUSED, None)
    assert issue.counts().unknown <= settings.BREAKER_FAULTS + CONNECTIONS


def test_a_provider_that_is_away_is_told_and_everything_comes_back(
    provider: ProviderApi, settings: Any, publication: Publication
) -> None:
    here = settings.ANYMAIL
    settings.ANYMAIL = {**here, "POSTMARK_API_URL": "http://127.0.0.1:9/"}
    issue = sending(20)
    step(issue)
    assert (issue.counts().open, issue.counts().sent) == (20, 0)
    assert SystemMail.objects.get(context__event="unreachable").context["error"].startswith("connect:")
    settings.ANYMAIL = here
    run(issue)
    assert (issue.state, len(logged(provider))) == (Issue.State.COMPLETED, 20)
    assert_promise(issue, provider, unknown_at_most=0)


def test_a_backend_without_its_key_is_told_and_everything_comes_back(provider: ProviderApi, settings: Any) -> None:
    here, settings.ANYMAIL = settings.ANYMAIL, {}
    issue = sending(5)
    step(issue)
    assert issue.counts().open == 5
    assert "POSTMARK_SERVER_TOKEN" in SystemMail.objects.get(context__event="unreachable").context["error"]
    settings.ANYMAIL = here
    run(issue)
    assert issue.state == Issue.State.COMPLETED

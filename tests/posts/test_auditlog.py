"""The audit log only grows, and an entry stands or falls with what it tells of."""

import datetime as dt
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.exceptions import ValidationError
from django.db import InternalError, ProgrammingError, connection, transaction
from django.test import Client
from django.utils import timezone

from newsletter import delivery, sweeper
from newsletter.models import Issue
from posts import auditlog
from posts.models import AuditEntry
from subscribers.models import Subscriber, Suppression
from tests.factories import make_issue, make_post, make_slot

pytestmark = pytest.mark.usefixtures("publication")


@pytest.fixture
def entry() -> AuditEntry:
    return auditlog.note("issue.schedule", "#1 This week", actor="author", slot=7)


@pytest.mark.parametrize(
    "change",
    [
        lambda entry: AuditEntry.objects.filter(pk=entry.pk).update(actor="somebody else"),
        lambda entry: AuditEntry.objects.filter(pk=entry.pk).delete(),
        lambda entry: entry.delete(),
        lambda entry: setattr(entry, "act", "nothing") or entry.save(),
        lambda entry: execute("UPDATE posts_auditentry SET at = now()"),
        lambda entry: execute("DELETE FROM posts_auditentry"),
    ],
)
def test_no_entry_is_changed_or_removed(entry: AuditEntry, change: Any) -> None:
    with pytest.raises((InternalError, ProgrammingError), match="only grows"), transaction.atomic():
        change(entry)
    entry.refresh_from_db()
    assert (entry.actor, entry.act, entry.detail) == ("author", "issue.schedule", {"slot": 7})


def execute(sql: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(sql)


def test_what_json_can_not_keep_is_kept_as_text_and_long_texts_are_cut() -> None:
    at = timezone.now()
    entry = auditlog.note("x", fields={"at": [None, at], "about": ["", "a" * 999]}, ids={3})
    assert entry.detail["fields"]["at"] == [None, str(at)]
    assert len(entry.detail["fields"]["about"][1]) == 302
    assert entry.detail["ids"] == [3]


def test_an_entry_falls_with_what_it_tells_of(alice: Subscriber) -> None:
    issue = make_issue(subject="")
    with pytest.raises(ValidationError), auditlog.acting("issue.schedule", issue, actor="author"):
        issue.schedule(make_slot())
    assert not AuditEntry.objects.exists()


def test_a_move_that_somebody_makes_is_noted_once_with_his_name(alice: Subscriber) -> None:
    issue = make_issue()
    with auditlog.acting("issue.now", issue, actor="author"):
        delivery.send_now(issue)
    entry = AuditEntry.objects.get()
    assert (entry.act, entry.subject, entry.actor) == ("issue.now", "#1 This week", "author")


def test_what_an_issue_does_by_itself_is_noted_with_nobodys_name(alice: Subscriber) -> None:
    issue = make_issue()
    with auditlog.acting("issue.schedule", issue, actor="author"):
        issue.schedule_at(timezone.now() - dt.timedelta(seconds=1))
    sweeper.dispatch_due()
    Issue.objects.filter(pk=issue.pk).update(state="paused", pause_reason="The relay wants a signature")
    issue.deliveries.update(state="accepted", next_attempt_at=None)
    Issue.objects.filter(pk=issue.pk).update(state="sending", pause_reason="")
    delivery.settle_issue(issue.pk)
    found = AuditEntry.objects.order_by("pk").values_list("act", "actor")
    assert list(found) == [
        ("issue.schedule", "author"),
        ("issue.frozen", ""),
        ("issue.sending", ""),
        ("issue.paused", ""),
        ("issue.sending", ""),
        ("issue.completed", ""),
    ]
    assert AuditEntry.objects.get(act="issue.paused").detail["reason"] == "The relay wants a signature"


BUTTONS = ["schedule", "unschedule", "now", "pause", "resume", "cancel"]


def test_each_button_of_an_issue_is_noted(admin_client: Client, admin_user: User, alice: Subscriber) -> None:
    issue, slot = make_issue(), make_slot()
    for name in BUTTONS:
        values = {"act": name, "slot": slot.pk, "sure": "1"}
        admin_client.post(f"/admin/newsletter/issue/{issue.pk}/act/", values)
    noted = AuditEntry.objects.filter(act__startswith="issue.").order_by("pk")
    assert list(noted.values_list("act", "actor")) == [(f"issue.{name}", "admin") for name in BUTTONS]


def test_a_refused_button_is_not_noted(admin_client: Client, alice: Subscriber) -> None:
    issue = make_issue(subject="")
    admin_client.post(f"/admin/newsletter/issue/{issue.pk}/act/", {"act": "now", "sure": "1"})
    assert not AuditEntry.objects.filter(act__startswith="issue.").exists()


def test_an_issue_made_changed_and_deleted_by_hand_is_noted(admin_client: Client) -> None:
    add, inline = "/admin/newsletter/issue/add/", {"issue_posts-TOTAL_FORMS": 0, "issue_posts-INITIAL_FORMS": 0}
    admin_client.post(add, {"subject": "This week", **inline})
    issue = Issue.objects.get()
    page = f"/admin/newsletter/issue/{issue.pk}"
    for subject in ("That week", "That week"):  # the second time nothing changes
        admin_client.post(f"{page}/change/", {"subject": subject, **inline})
    admin_client.post(f"{page}/delete/", {"post": "yes"})
    assert not Issue.objects.exists()
    noted = AuditEntry.objects.filter(act__startswith="issue.").order_by("pk")
    assert list(noted.values_list("act", "actor")) == [
        ("issue.add", "admin"),
        ("issue.change", "admin"),
        ("issue.delete", "admin"),
    ]
    assert noted[1].detail == {"what": [{"changed": {"fields": ["Subject"]}}]}


def test_what_is_put_together_from_ready_posts_is_noted(admin_client: Client) -> None:
    make_post(ready=True)
    admin_client.post("/admin/newsletter/issue/compose/")
    assert AuditEntry.objects.get(act__startswith="issue.").act == "issue.compose"


def test_a_suppression_taken_away_is_noted(admin_client: Client) -> None:
    data = {"address": "alice@example.org", "reason": Suppression.Reason.MANUAL, "note": "asked by phone"}
    admin_client.post("/admin/subscribers/suppression/add/", data)
    row = Suppression.objects.get()
    admin_client.post(f"/admin/subscribers/suppression/{row.pk}/delete/", {"post": "yes"})
    noted = AuditEntry.objects.filter(act__startswith="suppression.").order_by("pk")
    assert list(noted.values_list("act", flat=True)) == ["suppression.add", "suppression.delete"]


def test_the_log_is_read_in_the_admin_and_not_written(admin_client: Client, entry: AuditEntry) -> None:
    assert "issue.schedule" in admin_client.get("/admin/posts/auditentry/").text
    page = f"/admin/posts/auditentry/{entry.pk}"
    assert admin_client.get(f"{page}/change/").status_code == 200
    assert [admin_client.post(f"{page}/{name}/").status_code for name in ("change", "delete")] == [403, 403]
    assert admin_client.get("/admin/posts/auditentry/add/").status_code == 403

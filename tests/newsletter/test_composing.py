"""Composing an issue: proposed from what is ready, its posts and date chosen, each move one button that says it all."""

import datetime as dt
import re
from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.core.exceptions import ValidationError
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from newsletter import composing, delivery, schedule
from newsletter.models import Issue, IssuePost, Slot
from posts.models import Post, Publication
from subscribers.models import Subscriber
from tests.factories import make_issue, make_post, make_readers, make_slot

pytestmark = pytest.mark.usefixtures("publication")


@pytest.fixture
def author(admin_client: Client) -> Client:
    return admin_client


def page(issue: Issue) -> str:
    return f"/admin/newsletter/issue/{issue.pk}/change/"


def plain(text: str) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", text).split())


def form(issue: Issue, *rows: dict[str, Any], **values: Any) -> dict[str, Any]:
    """Return what the issue's form sends: its words and a row for each post."""
    data = {"subject": issue.subject, "preheader": issue.preheader, "introduction": issue.introduction}
    known = sum("id" in row for row in rows)
    data |= {"issue_posts-TOTAL_FORMS": len(rows), "issue_posts-INITIAL_FORMS": known}
    for number, row in enumerate(rows):
        data |= {f"issue_posts-{number}-{name}": value for name, value in {"issue": issue.pk, **row}.items()}
    return {**data, **values}


def press(client: Client, issue: Issue, act: str, *rows: dict[str, Any], **values: Any) -> str:
    """Press a button below the form and return the page that follows, as plain text."""
    return plain(client.post(page(issue), form(issue, *rows, act=act, **values), follow=True).text)


def editor(client: Client, *codenames: str) -> Client:
    user = User.objects.create_user("editor", "editor@example.org", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=codenames))
    client.force_login(user)
    return client


WRITES = ["view_issue", "change_issue", "add_issue", "view_issuepost", "change_issuepost", "add_issuepost"]


# Proposing


def test_an_issue_is_proposed_from_what_is_ready_in_the_order_it_was_written() -> None:
    first = make_post("On locks", excerpt="Why\nrows wait.", ready=True)
    second = make_post("On plans", ready=True)
    make_post("Not yet")
    issue = composing.propose()
    assert (issue.subject, issue.preheader, issue.state) == ("On locks", "Why rows wait.", "draft")
    found = issue.issue_posts.values_list("position", "post", "mode")
    assert list(found) == [(1, first.pk, "full"), (2, second.pk, "teaser")]


def test_what_is_mailed_only_has_no_page_to_lead_to_and_stands_there_in_full() -> None:
    make_post(ready=True)
    secret = make_post("For readers", ready=True, visibility=Post.Visibility.EMAIL_ONLY)
    assert composing.propose().issue_posts.get(post=secret).mode == IssuePost.Mode.FULL


def test_a_long_summary_becomes_a_preheader_that_ends_with_a_word() -> None:
    make_post(ready=True, excerpt="word " * 100)
    preheader = composing.propose().preheader
    assert len(preheader) <= composing.PREHEADER_LENGTH
    assert preheader.endswith("word …")


def test_a_second_press_makes_no_second_draft() -> None:
    make_post(ready=True)
    issue = composing.propose()
    with pytest.raises(ValidationError, match="stand in an issue"):
        composing.propose()
    issue.delete()
    assert composing.propose().posts.count() == 1


def test_a_withdrawn_post_is_not_proposed() -> None:
    make_post(ready=True, status=Post.Status.WITHDRAWN)
    with pytest.raises(ValidationError, match="No post is marked"):
        composing.propose()


def test_the_list_of_issues_has_the_button_and_says_how_many(author: Client) -> None:
    assert "No post waits here" in author.get("/admin/newsletter/issue/").text
    make_post("On locks", ready=True)
    make_post("On plans", ready=True)
    assert "Compose from what is ready: 2 posts" in author.get("/admin/newsletter/issue/").text
    shown = author.post("/admin/newsletter/issue/compose/", follow=True)
    assert "Here is a draft of what is ready" in shown.text
    assert Issue.objects.get().posts.count() == 2
    again = author.post("/admin/newsletter/issue/compose/", follow=True)
    assert "stand in an issue" in again.text


def test_proposing_is_a_post_of_those_who_may_add_issues(client: Client, author: Client) -> None:
    make_post(ready=True)
    assert author.get("/admin/newsletter/issue/compose/").status_code == 405
    editor(client, "view_issue", "change_issue", "send_issue")
    assert client.post("/admin/newsletter/issue/compose/").status_code == 403
    assert not Issue.objects.exists()


# Choosing posts


def test_posts_are_chosen_by_group_and_withdrawn_ones_only_where_they_stand_already() -> None:
    make_post("Ready", ready=True)
    make_post("Draft")
    make_post("Out", status=Post.Status.PUBLISHED, published_at=timezone.now())
    gone = make_post("Gone", status=Post.Status.WITHDRAWN)
    names = {name: [title for _pk, title in rows] for name, rows in composing.choices(make_issue())}
    assert names == {"Ready for the next issue": ["Ready"], "Not published yet": ["Draft"], "Published": ["Out"]}
    with_it = dict(composing.choices(make_issue(gone)))
    assert (gone.pk, "Gone") in with_it["Published"]


def test_a_post_is_chosen_from_a_plain_list_that_escapes_its_titles(author: Client) -> None:
    post = make_post("</option><script>alert(1)</script>")
    issue = make_issue()
    shown = author.get(page(issue)).text
    assert f'<option value="{post.pk}">&lt;/option&gt;&lt;script&gt;' in shown
    assert "<script>alert(1)" not in shown
    author.post(page(issue), form(issue, {"post": post.pk, "mode": "teaser", "position": ""}))
    assert issue.issue_posts.get().post == post
    assert f'<option value="{post.pk}" selected>' in author.get(page(issue)).text


def test_posts_are_ordered_by_their_numbers_and_one_without_comes_last(author: Client) -> None:
    one, two, three = make_post("One"), make_post("Two"), make_post("Three")
    issue = make_issue(one, two)
    first, second = issue.issue_posts.order_by("pk")
    rows = [
        {"id": first.pk, "post": one.pk, "mode": "full", "position": 5},
        {"id": second.pk, "post": two.pk, "mode": "teaser", "position": 3},
        {"post": three.pk, "mode": "full", "position": ""},
    ]
    author.post(page(issue), form(issue, *rows))
    found = issue.issue_posts.values_list("position", "post__title", "mode")
    assert list(found) == [(1, "Two", "teaser"), (2, "One", "full"), (3, "Three", "full")]


def test_a_post_chosen_twice_is_refused_in_words_and_nothing_typed_is_lost(author: Client) -> None:
    post, issue = make_post(), make_issue()
    rows = [{"post": post.pk, "mode": "full", "position": n} for n in (1, 2)]
    shown = author.post(page(issue), form(issue, *rows, subject="Typed just now", act="now"))
    assert "Please correct the duplicate" in shown.text
    assert 'value="Typed just now"' in shown.text
    issue.refresh_from_db()
    assert (issue.subject, issue.state) == ("This week", "draft")


def test_an_empty_row_is_no_post(author: Client) -> None:
    issue = make_issue()
    author.post(page(issue), form(issue, {"post": "", "mode": "full", "position": ""}, subject="Changed"))
    issue.refresh_from_db()
    assert (issue.subject, issue.posts.count()) == ("Changed", 0)


def test_a_new_issue_goes_on_on_its_own_page(author: Client) -> None:
    shown = author.post("/admin/newsletter/issue/add/", form(Issue(subject="New")), follow=True)
    assert shown.redirect_chain[-1][0] == page(Issue.objects.get())
    assert "The next dates" in shown.text


# Dates and buttons


def test_the_button_says_when_where_and_to_how_many(author: Client) -> None:
    make_readers(3)
    Publication.objects.update(time_zone="America/New_York")
    shown = plain(author.get(page(make_issue())).text)
    slot = Slot.objects.upcoming()[0]
    local = slot.due_at.astimezone(Publication.current().zone)
    when = f"{local:%A} {local.day} {local:%b %H:%M} New York"
    assert f"Schedule for {when}, to 3 readers" in shown
    assert f"{slot.due_at:%H:%M} UTC" in shown
    assert "Send now to 3 readers …" in shown


def test_a_single_reader_is_not_called_readers(author: Client, alice: Subscriber, bob: Subscriber) -> None:
    assert ", to 1 reader " in plain(author.get(page(make_issue())).text)


def test_eight_dates_are_shown_with_what_takes_them(author: Client) -> None:
    author.get(page(make_issue()))
    slots = list(Slot.objects.upcoming())
    assert len(slots) == 8
    make_issue(subject="Taken already").schedule(slots[0])
    slots[1].hold()
    shown = author.get(page(make_issue()))
    assert shown.text.count('value="schedule:') == 1 + 6
    assert f'value="schedule:{slots[2].pk}"' in shown.text
    words = plain(shown.text)
    assert "#1 Taken already" in words
    assert "Nothing: held" in words


def test_the_queue_holds_the_drafts_that_could_go(author: Client) -> None:
    make_issue(subject="Could go")
    make_issue(subject="")
    Issue.objects.create(subject="Nothing in it")
    own = make_issue(subject="This one")
    assert [issue.subject for issue in composing.queue(without=own)] == ["Could go"]
    assert "Could go" in author.get(page(own)).text


def test_pressing_schedule_saves_what_was_typed_and_schedules(author: Client, alice: Subscriber) -> None:
    issue, slot = Issue.objects.create(), make_slot()
    words = press(author, issue, f"schedule:{slot.pk}", subject="Typed", introduction="Hello.")
    assert "the issue is now “Scheduled”" in words
    issue.refresh_from_db()
    assert (issue.subject, issue.slot, issue.due_at) == ("Typed", slot, slot.due_at)
    assert "Back to draft" in words


def test_what_can_not_be_scheduled_is_saved_nevertheless(author: Client) -> None:
    issue, slot = Issue.objects.create(), make_slot()
    assert "The issue is empty" in press(author, issue, f"schedule:{slot.pk}", subject="Typed")
    issue.refresh_from_db()
    assert (issue.subject, issue.state) == ("Typed", "draft")


def test_a_change_that_blocks_a_scheduled_issue_is_told_at_once_and_keeps_its_date(author: Client) -> None:
    issue, text = make_issue(), "The key is AKIA" + "Q3EGRIVAXJSQ4P2T."
    issue.schedule(make_slot())
    answer = author.post(page(issue), form(issue, introduction=text), follow=True)
    assert "It goes as it stands, but: " in plain(answer.text)
    assert "; secret-aws-key)" in plain(answer.text)
    issue.refresh_from_db()
    assert (issue.state, issue.introduction) == ("scheduled", text)


def test_back_to_draft_undoes_it_and_frees_the_date(author: Client) -> None:
    issue, slot = make_issue(), make_slot()
    issue.schedule(slot)
    assert "the issue is now “Draft”" in press(author, issue, "unschedule")
    slot.refresh_from_db()
    assert slot.state == Slot.State.OPEN


def test_another_date_is_taken_by_one_press_and_the_first_is_free(author: Client) -> None:
    issue, first, second = make_issue(), make_slot(), make_slot(days=14)
    issue.schedule(first)
    press(author, issue, f"schedule:{second.pk}")
    first.refresh_from_db()
    issue.refresh_from_db()
    assert (issue.slot, first.state) == (second, "open")


def test_sending_now_by_the_forms_button_saves_and_asks_first(author: Client, alice: Subscriber) -> None:
    issue = make_issue()
    words = press(author, issue, "now", subject="Typed")
    assert "starts to go to 1 reader at once" in words
    assert "“#? Typed”" in words
    issue.refresh_from_db()
    assert issue.state == "draft"


def test_a_date_is_held_opened_and_moved_from_the_issues_page(author: Client) -> None:
    issue, slot = make_issue(), make_slot()
    assert "Nothing goes out on" in press(author, issue, f"hold:{slot.pk}", subject="Kept")
    slot.refresh_from_db()
    assert slot.state == "held"
    assert "is open again" in press(author, issue, f"release:{slot.pk}", subject="Kept")
    day = slot.due_at.date() + dt.timedelta(days=1)
    press(author, issue, f"move:{slot.pk}", subject="Kept", **{f"move_{slot.pk}": f"{day}T18:30"})
    slot.refresh_from_db()
    assert slot.due_at == schedule.instant(day, dt.time(18, 30), Publication.current().zone)
    issue.refresh_from_db()
    assert issue.subject == "Kept"


@pytest.mark.parametrize(
    ("typed", "words"),
    [("", "Write the new date and time"), ("soon", "Write the new date"), ("2001-01-01T09:00", "has passed")],
)
def test_a_move_to_nowhere_is_refused_in_words(author: Client, typed: str, words: str) -> None:
    issue, slot = make_issue(), make_slot()
    assert words in press(author, issue, f"move:{slot.pk}", **{f"move_{slot.pk}": typed})
    assert Slot.objects.get(pk=slot.pk).due_at == slot.due_at


def test_a_taken_date_is_not_held_and_its_issue_goes_along_when_it_moves(author: Client) -> None:
    issue, slot = make_issue(), make_slot()
    issue.schedule(slot)
    assert "take it back to a draft first" in press(author, issue, f"hold:{slot.pk}")
    press(author, issue, f"move:{slot.pk}", **{f"move_{slot.pk}": f"{slot.local_date}T23:59"})
    issue.refresh_from_db()
    assert issue.due_at == Slot.objects.get(pk=slot.pk).due_at != slot.due_at


def test_enter_in_a_field_saves_and_sends_nothing(author: Client) -> None:
    """A browser presses the form's first button then, wherever that stands."""
    buttons = re.findall(r'<button[^>]*form="issue_form"[^>]*>', author.get(page(make_issue())).text)
    assert 'name="_continue"' in buttons[0]


def test_what_is_typed_after_the_issue_began_is_refused_and_shown_to_be_copied(
    author: Client, alice: Subscriber
) -> None:
    issue = make_issue()
    delivery.send_now(issue)
    shown = author.post(page(issue), form(issue, subject="Too late", introduction="<b>Long</b> thoughts."))
    assert shown.status_code == 200
    assert "came too late" in shown.text
    assert "&lt;b&gt;Long&lt;/b&gt; thoughts." in shown.text
    issue.refresh_from_db()
    assert issue.subject == "This week"


def test_a_sender_that_is_no_address_is_told_on_the_page(author: Client) -> None:
    Publication.objects.update(sender_address="a@[127.0.0.1]")
    issue = make_issue()
    shown = author.get(page(issue))
    assert "This is not one e-mail address" in shown.text
    assert author.get(f"/admin/newsletter/issue/{issue.pk}/preview/").status_code == 200


# Editing and sending are two


@pytest.mark.parametrize("act", ["schedule:1", "now", "unschedule", "cancel", "hold:1", "move:1", "test", "group:1"])
def test_who_writes_may_not_send(client: Client, act: str) -> None:
    issue = make_issue()
    editor(client, *WRITES)
    assert client.post(page(issue), form(issue, act=act)).status_code == 403
    assert client.post(page(issue).replace("change", "act"), {"act": act}).status_code == 403
    issue.refresh_from_db()
    assert issue.state == "draft"


def test_who_writes_sees_no_button_that_sends_and_is_told_why(client: Client) -> None:
    shown = editor(client, *WRITES).get(page(make_issue())).text
    assert re.findall(r'name="act" value="(\w+)', shown) == ["mine"]
    assert "somebody who may send schedules it" in shown
    assert "The next dates" in shown


def test_who_may_send_and_not_write_schedules_what_stands_there(client: Client) -> None:
    issue, slot = make_issue(), make_slot()
    shown = editor(client, "view_issue", "send_issue").get(page(issue)).text
    assert 'form="issue_form" name="act"' not in shown
    assert f'form="issue_acts" name="act" value="schedule:{slot.pk}"' in shown
    client.post(page(issue).replace("change", "act"), {"act": f"schedule:{slot.pk}"})
    issue.refresh_from_db()
    assert issue.state == "scheduled"


def test_who_may_not_send_can_not_move_a_date_in_the_calendar(client: Client) -> None:
    slot = make_slot()
    editor(client, "view_slot", "change_slot")
    path = f"/admin/newsletter/slot/{slot.pk}/change/"
    later = slot.due_at + dt.timedelta(hours=5)
    data = {"due_at_0": f"{later:%Y-%m-%d}", "due_at_1": f"{later:%H:%M:%S}"}
    assert client.get(path).status_code == 200
    assert client.post(path, data).status_code == 403
    assert Slot.objects.get(pk=slot.pk).due_at == slot.due_at


# The inbox


def test_the_inbox_shows_what_a_reader_without_a_name_gets(author: Client) -> None:
    issue = make_issue(subject="Hello {{ name|there }}", preheader="For {{ name }} alone")
    shown = author.get(page(issue)).text
    assert '<span data-inbox="subject">Hello there</span>' in shown
    assert 'data-inbox="preheader">For  alone</span>' in shown


def test_the_page_takes_no_more_queries_for_more_posts(author: Client) -> None:
    issue = make_issue(*(make_post(f"Post {n}") for n in range(2)))
    author.get(page(issue))
    for_two = queries(author, issue)
    for n in range(2, 6):
        IssuePost.objects.create(issue=issue, post=make_post(f"Post {n}"), position=n)
    assert queries(author, issue) == for_two


def queries(client: Client, issue: Issue) -> int:
    with CaptureQueriesContext(connection) as found:
        client.get(page(issue))
    return len(found)


def test_the_posts_of_a_scheduled_issue_no_longer_save_themselves(publication: Publication) -> None:
    post = make_post("On locks", "Half a sent")
    make_issue(post).schedule(make_slot())
    post.refresh_from_db()
    assert post.ready


def test_a_scheduled_issue_is_changed_only_by_those_who_may_send(client: Client, publication: Publication) -> None:
    issue = make_issue(make_post("On locks"), subject="On locks")
    writer = editor(client, *WRITES)
    assert "id_subject" in writer.get(page(issue)).text
    issue.schedule(make_slot())
    assert "id_subject" not in writer.get(page(issue)).text
    answer = writer.post(page(issue), {"subject": "Something else", "introduction": "Half an hour's work"})
    assert "Half an hour&#x27;s work" in answer.text
    assert Issue.objects.get().subject == "On locks"

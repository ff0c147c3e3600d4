"""The post editor's views: what is typed is kept, nobody's work is written over, and nothing runs in a preview."""

import datetime as dt
import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.core.exceptions import ValidationError
from django.test import Client
from django.urls import reverse
from django.utils import timezone
from pytest_django import DjangoAssertNumQueries

from newsletter import sweeper
from posts import revisions
from posts.models import AUTOSAVED, Post, Publication, Snippet, Tag
from tests.factories import make_post
from tests.posts.test_markdown import ATTACKS, CORPORA, dangers, needs_corpora

pytestmark = pytest.mark.usefixtures("publication")
ADD = "/admin/posts/post/add/"
PREVIEWS = ["markdown:preview", "post_mail"]


@pytest.fixture
def author(admin_client: Client) -> Client:
    return admin_client


@pytest.fixture
def clerk(client: Client, db: None) -> Client:
    """Somebody of the staff who may look at posts and change none."""
    user = User.objects.create_user("clerk", is_staff=True)
    user.user_permissions.add(Permission.objects.get(codename="view_post"))
    client.force_login(user)
    return client


def change(post: Post, what: str = "change") -> str:
    return f"/admin/posts/post/{post.pk}/{what}/"


def form_of(client: Client, post: Post) -> dict[str, Any]:
    """Return what a browser would send back of the post's form, untouched."""
    form = client.get(change(post)).context["adminform"].form
    values = {name: form[name].value() for name in form.fields}
    texts = {name: value for name, value in values.items() if value not in (None, False) and name != "cover"}
    return {**texts, **dates(texts.pop("published_at", None)), "version": form.shown_version}


def dates(at: dt.datetime | None) -> dict[str, str]:
    local = at and at.astimezone(Publication.current().zone)
    return {"published_at_0": f"{local:%Y-%m-%d}", "published_at_1": f"{local:%H:%M:%S}"} if local else {}


def save(client: Client, post: Post, **values: Any) -> Any:
    return client.post(change(post), {**form_of(client, post), **values}, follow=True)


def keep(client: Client, post: Post | None = None, **values: Any) -> Any:
    path = change(post, "keep") if post else reverse("admin:posts_post_keep_new")
    return client.post(path, {"version": post.version if post else "", **values})


def show(client: Client, view: str, body: str, **values: Any) -> Any:
    return client.post(reverse(view), {"kind": "post", "title": "A title", "body": body, **values})


# The preview


def test_the_preview_is_the_page_that_readers_will_see(author: Client) -> None:
    body = "## A claim\n\n```sql\nSELECT 1;\n```\n\nWords[^1].\n\n[^1]: More."
    post = make_post("On locks", body, status=Post.Status.PUBLISHED, published_at=timezone.now())
    page = author.get(post.get_absolute_url()).text
    shown = show(author, "markdown:preview", body, title=post.title, pk=post.pk).json()
    article = re.compile(r"<article.*?\s*(?=<footer|</article>)", re.DOTALL)  # ways to hand it on are the page's alone
    of_both = [[part.split() for part in article.findall(html)] for html in (shown["html"], page)]
    assert of_both[0] == of_both[1] != []
    assert (shown["words"], shown["minutes"]) == (len(post.body_text.split()), 1)
    for sheet in re.findall(r'<link rel="stylesheet" href="([^"]+)"', page):
        assert sheet in shown["html"]


def test_the_preview_saves_nothing(author: Client) -> None:
    post = make_post(body="Kept.")
    assert "Typed." in show(author, "markdown:preview", "Typed.", pk=post.pk).json()["html"]
    post.refresh_from_db()
    assert post.body == "Kept."
    show(author, "post_mail", "Typed.")
    assert Post.objects.count() == 1


def test_the_mail_is_shown_as_it_would_go_with_its_size(author: Client) -> None:
    small = show(author, "post_mail", "Some *words*.").json()
    assert "Unsubscribe" in small["html"]
    assert "<em>words</em>" in small["html"]
    assert (0 < small["kilobytes"] < 30, small["warning"]) == (True, "")
    large = show(author, "post_mail", "words " * 20_000).json()
    assert large["kilobytes"] > 110
    assert "cut the end off" in large["warning"]


@pytest.mark.parametrize("view", PREVIEWS)
def test_a_text_that_can_not_be_rendered_is_told_so(author: Client, view: str) -> None:
    answer = show(author, view, "<div>" * 5000)
    assert answer.status_code == 422
    assert "nested too deeply" in answer.json()["error"]


@pytest.mark.parametrize("key", ["", "x", "-1", "9" * 40, "0"])
def test_a_preview_of_a_post_that_is_not_there_is_one_of_a_new_post(author: Client, key: str) -> None:
    assert show(author, "markdown:preview", "Typed.", pk=key).status_code == 200


@pytest.mark.parametrize("view", PREVIEWS)
@pytest.mark.parametrize(("codenames", "shown"), [(["add_post"], False), (["add_post", "view_post"], True)])
def test_a_preview_shows_a_saved_text_only_to_those_who_may_see_it(
    client: Client, view: str, codenames: list[str], shown: bool
) -> None:
    user = User.objects.create_user("clerk", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=codenames))
    client.force_login(user)
    post = make_post(body="Nobody has read this.")
    assert ("Nobody has read" in client.post(reverse(view), {"kind": "post", "pk": post.pk}).text) is shown


@pytest.mark.parametrize("view", PREVIEWS)
def test_a_preview_carries_a_policy_of_its_own(author: Client, view: str) -> None:
    answer = show(author, view, "a")
    assert "sandbox" in answer["Content-Security-Policy"]
    policy = re.search(
        r'<head><meta http-equiv="Content-Security-Policy" content="([^"]+)"><base target="_blank">',
        answer.text.replace('\\"', '"'),
    )
    assert policy
    assert policy[1].startswith("default-src 'none'")
    assert "script-src" not in policy[1]


def found_in(answer: Any) -> list[str]:
    """Return what in a preview could run or load something, beyond what the page around the text has itself."""
    return sorted(dangers(answer.json()["html"], "email"))


@pytest.mark.parametrize("view", PREVIEWS)
@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_in_any_text_runs_nowhere(author: Client, view: str, attack: str) -> None:
    texts = dict.fromkeys(set(Post.TEXTS) - {"body"}, attack)
    assert found_in(show(author, view, attack, **texts)) == found_in(show(author, view, "plain", subtitle="plain"))


def test_the_check_of_previews_itself_sees_a_danger(author: Client) -> None:
    answer = show(author, "markdown:preview", "plain")
    harmless = found_in(answer)
    answer.json = lambda: {"html": answer.content.decode().replace("plain", "<img src=x onerror=alert(1)>")}
    assert len(found_in(answer)) > len(harmless)


@needs_corpora
@pytest.mark.slow
@pytest.mark.parametrize("view", PREVIEWS)
def test_no_line_of_the_attack_corpora_runs_in_a_preview(author: Client, view: str) -> None:
    texts = [path.read_text("utf-8") for path in sorted(Path(CORPORA, "xss").rglob("*.test"))]
    texts += json.loads(Path(CORPORA, "strings/blns.json").read_text("utf-8"))
    assert len(texts) > 450
    harmless = found_in(show(author, view, "plain", subtitle="plain"))
    bad = {text for text in texts if found_in(show(author, view, text, title=text, subtitle=text)) != harmless}
    assert bad == set()


# Keeping what is typed


def test_a_title_is_enough_for_a_first_draft(author: Client) -> None:
    told = keep(author, title="A new thought", body="Begun.").json()
    post = Post.objects.get()
    assert (post.title, post.body, post.status, post.slug) == ("A new thought", "Begun.", "draft", "a-new-thought")
    assert told == {
        "version": post.version,
        "pk": post.pk,
        "page": change(post),
        "keep": change(post, "keep"),
    }


def test_without_a_title_nothing_is_kept_and_it_is_said_why(author: Client) -> None:
    answer = keep(author, title="", body="Begun.")
    assert answer.status_code == 422
    assert answer.json()["error"].startswith("Title: ")
    assert not Post.objects.exists()


def test_a_draft_is_kept_as_it_is_typed_and_its_address_follows_the_title(author: Client) -> None:
    post = Post.objects.get(pk=keep(author, title="My fi").json()["pk"])
    told = keep(author, post, title="My first post", body="Words.").json()
    post.refresh_from_db()
    assert (post.title, post.slug, post.body, told["version"]) == (
        "My first post",
        "my-first-post",
        "Words.",
        post.version,
    )


def test_an_address_that_was_chosen_stays(author: Client) -> None:
    post = make_post("My first post", slug="chosen")
    keep(author, post, title="Another title")
    post.refresh_from_db()
    assert post.slug == "chosen"


def test_keeping_touches_nothing_but_texts(author: Client) -> None:
    post = make_post()
    keep(author, post, title="T", status="published", ready="on", visibility="unlisted")
    post.refresh_from_db()
    assert (post.title, post.status, post.ready, post.visibility) == ("T", "draft", False, "public")


@pytest.mark.parametrize(
    "values",
    [
        {"status": Post.Status.PUBLISHED, "published_at": timezone.now()},
        {"status": Post.Status.SCHEDULED, "published_at": timezone.now() + dt.timedelta(hours=1)},
        {"status": Post.Status.WITHDRAWN},
        {"ready": True},
    ],
)
def test_what_others_see_or_an_issue_is_promised_is_never_changed_by_typing(author: Client, values: Any) -> None:
    post = make_post(body="Seen.", **values)
    answer = keep(author, post, body="Half a sen")
    post.refresh_from_db()
    assert (answer.status_code, answer.json(), post.body) == (409, {"shown": True}, "Seen.")


def test_typing_never_writes_over_another_s_work(author: Client) -> None:
    post = make_post(body="Seen.")
    before = post.version
    Post.objects.filter(pk=post.pk).update(body="Theirs.")
    answer = keep(author, post, version=before, body="Mine.")
    post.refresh_from_db()
    assert (answer.status_code, answer.json(), post.body) == (409, {"conflict": True}, "Theirs.")


def test_only_who_may_write_keeps_drafts(clerk: Client) -> None:
    post = make_post(body="Kept.")
    assert keep(clerk, post, body="No.").status_code == 403
    assert keep(clerk, title="No.").status_code == 403
    assert clerk.get(change(post, "keep")).status_code == 405
    assert Post.objects.get().body == "Kept."


def test_an_hour_of_typing_makes_few_revisions(author: Client) -> None:
    post = Post.objects.get(pk=keep(author, title="Long").json()["pk"])
    for number in range(30):
        keep(author, post, body=f"Word {number}")
        post.refresh_from_db()
    assert post.history.count() <= 2  # two where the clock passed a tenth minute meanwhile
    assert post.history.first().body == "Word 29"
    post.history.update(history_date=timezone.now() - dt.timedelta(minutes=11))
    keep(author, post, body="Later")
    assert post.history.count() > 1


def test_typing_never_replaces_a_revision_that_was_saved(author: Client) -> None:
    post = make_post(body="Saved.")
    keep(author, post, body="Typed.")
    assert [revision.body for revision in post.history.all()] == ["Typed.", "Saved."]
    assert post.history.first().history_change_reason == AUTOSAVED


# Conflicts


def test_a_post_saved_untouched_is_no_conflict(author: Client) -> None:
    post = make_post(status=Post.Status.PUBLISHED, published_at=timezone.now(), subtitle="Sub")
    post.tags.add(Tag.objects.create(name="Locks"))
    answer = save(author, post, body="Mine.")
    assert "was changed successfully" in answer.text
    post.refresh_from_db()
    assert post.body == "Mine."


@pytest.mark.parametrize(
    "behind", [{"body": "Theirs, saved."}, {"status": "published", "published_at": timezone.now()}, {"ready": True}]
)
def test_a_post_that_changed_behind_the_form_is_not_written_over(author: Client, behind: Any) -> None:
    post = make_post(body="Both began here.")
    form = form_of(author, post)
    Post.objects.filter(pk=post.pk).update(**behind)
    page = author.post(change(post), {**form, "body": "Mine, typed."}).text
    assert "Changed elsewhere while you wrote" in page
    assert "Mine, typed.</textarea>" in page
    post.refresh_from_db()
    assert post.body == behind.get("body", "Both began here.")
    assert "Mine" in author.post(change(post), {**form, "body": "Mine again."}).text
    post.refresh_from_db()
    assert post.body == behind.get("body", "Both began here.")


def test_both_texts_are_shown_and_mine_is_saved_when_i_say_so(author: Client) -> None:
    post = make_post(body="The text is old.")
    form = form_of(author, post)
    Post.objects.get(pk=post.pk).restore(Post(title="On vacuum", body="The text is theirs."), reason="")
    page = author.post(change(post), {**form, "body": "The text is mine."}).text
    assert "<del>theirs</del>" in page
    assert "<ins>mine</ins>" in page
    version = re.search(r'name="overwrite" value="(\w+)"', page)
    assert version
    answer = author.post(change(post), {**form, "body": "The text is mine.", "overwrite": version[1]}, follow=True)
    assert "What it replaced stands in the revisions" in answer.text
    bodies = [revision.body for revision in post.history.all()]
    assert bodies[:2] == ["The text is mine.", "The text is theirs."]


def test_a_third_change_is_no_part_of_what_i_agreed_to(author: Client) -> None:
    post = make_post(body="First.")
    form = form_of(author, post)
    Post.objects.filter(pk=post.pk).update(body="Second.")
    agreed = Post.objects.get().version
    Post.objects.filter(pk=post.pk).update(body="Third.")
    page = author.post(change(post), {**form, "body": "Mine.", "overwrite": agreed}).text
    assert "Changed elsewhere while you wrote" in page
    assert Post.objects.get().body == "Third."


def test_a_form_without_a_version_writes_over_nothing(author: Client) -> None:
    post = make_post(body="Saved.")
    form = form_of(author, post)
    del form["version"]
    assert "Changed elsewhere" in author.post(change(post), {**form, "body": "Blind."}).text
    assert Post.objects.get().body == "Saved."


# Revisions


def test_a_revision_is_compared_and_brought_back(author: Client) -> None:
    post = make_post(body="One.\n\nThe first text.")
    first = post.history.first()
    save(author, post, body="One.\n\nThe second text.")
    page = author.get(f"{change(post, 'history')}?revision={first.pk}").text
    assert "<del>first</del>" in page
    assert "<ins>second</ins>" in page
    answer = author.post(change(post, "restore"), {"revision": first.pk}, follow=True)
    assert "is back" in answer.text
    assert [revision.body.split()[2] for revision in post.history.all()] == ["first", "second", "first"]
    assert post.history.first().history_user.username == "admin"


@pytest.mark.parametrize("key", ["9" * 5000, "9" * 18, "nothing"])
def test_the_revisions_of_no_post_are_not_found(author: Client, key: str) -> None:
    assert author.get(f"/admin/posts/post/{key}/history/").status_code == 404


def test_what_is_brought_back_is_text_and_no_status(author: Client) -> None:
    post = make_post(body="Draft text.")
    first = post.history.first()
    post.title, post.slug = "Another", "another"
    post.publish()
    author.post(change(post, "restore"), {"revision": first.pk})
    post.refresh_from_db()
    assert (post.title, post.slug, post.status) == ("On vacuum", "another", "published")
    assert "Draft text." in post.body_html


@pytest.mark.parametrize("key", ["", "x", "-1", "9" * 30, "0"])
def test_a_revision_that_is_none_is_not_found(author: Client, key: str) -> None:
    post = make_post()
    assert author.post(change(post, "restore"), {"revision": key}).status_code == 404
    assert author.get(f"{change(post, 'history')}?revision={key}").status_code == 200


def test_a_revision_of_another_post_is_not_brought_back(author: Client) -> None:
    post, other = make_post(body="Mine."), make_post("Other", "Other.")
    assert author.post(change(post, "restore"), {"revision": other.history.first().pk}).status_code == 404


def test_revisions_are_read_by_viewers_and_brought_back_by_editors(clerk: Client) -> None:
    post = make_post()
    page = clerk.get(f"{change(post, 'history')}?revision={post.history.first().pk}")
    assert page.status_code == 200
    assert "Bring this text back" not in page.text
    assert clerk.post(change(post, "restore"), {"revision": post.history.first().pk}).status_code == 403
    assert clerk.get(change(post, "restore")).status_code == 405
    clerk.force_login(User.objects.create_user("other", is_staff=True))
    assert clerk.get(change(post, "history")).status_code == 403


def test_a_text_in_a_difference_stays_text(author: Client) -> None:
    post = make_post(body="<script>alert(1)</script>")
    first = post.history.first()
    save(author, post, body="<img src=x onerror=alert(2)>")
    page = author.get(f"{change(post, 'history')}?revision={first.pk}").text
    assert "&lt;" in page.partition('class="difference"')[2]
    assert "<script>alert" not in page
    assert "<img src=x" not in page


def test_a_difference_names_lines_words_and_what_it_leaves_out() -> None:
    old = "a\nb\nc\nd\nThe quick brown fox\ne\nf\ng"
    lines = revisions.compare(old, old.replace("quick", "slow") + "\nlast")
    shown = [(line.mark, "".join(text for _kind, text in line.parts) or line.count) for line in lines]
    assert shown == [
        ("", 2), (" ", "c"), (" ", "d"), ("−", "The quick brown fox"), ("+", "The slow brown fox"),
        (" ", "e"), (" ", "f"), (" ", "g"), ("+", "last"),
    ]  # fmt: skip
    assert ("gone", "quick") in lines[3].parts
    assert revisions.compare("a\r\nb", "a\nb") == []


def test_a_long_difference_takes_no_long_time() -> None:
    old = "\n".join(f"line {number} of a long text" for number in range(4000))
    began = time.perf_counter()
    assert revisions.compare(old, old.replace("long", "short"))
    assert revisions.compare("word " * 40_000, "other " * 40_000)
    assert time.perf_counter() - began < 8


# Dates, snippets, the page itself


def test_a_date_is_written_and_read_in_the_publication_s_zone(author: Client) -> None:
    Publication.objects.update(time_zone="America/New_York")
    post = make_post()
    save(author, post, status="scheduled", published_at_0="2030-07-01", published_at_1="09:00:00")
    post.refresh_from_db()
    assert post.published_at == dt.datetime(2030, 7, 1, 13, tzinfo=dt.UTC)
    page = author.get(change(post)).text
    assert "Monday 1 July 2030, 09:00 (America/New_York)" in page
    assert 'value="09:00:00"' in page


def test_a_scheduled_post_needs_a_date(author: Client) -> None:
    post = make_post()
    assert "a scheduled post needs a date" in save(author, post, status="scheduled").text
    with pytest.raises(ValidationError):
        Post(title="T", status=Post.Status.SCHEDULED).full_clean()


def test_a_scheduled_post_is_on_the_web_at_its_instant_and_its_status_follows(client: Client) -> None:
    post = make_post(status=Post.Status.SCHEDULED, published_at=timezone.now() + dt.timedelta(seconds=60))
    assert client.get(post.get_absolute_url()).status_code == 404
    Post.objects.update(published_at=timezone.now() - dt.timedelta(seconds=1))
    assert client.get(post.get_absolute_url()).status_code == 200
    sweeper.publish_scheduled_posts()
    post.refresh_from_db()
    assert post.status == Post.Status.PUBLISHED


def test_snippets_are_in_the_editor_and_stay_text_there(author: Client) -> None:
    author.post(
        "/admin/posts/snippet/add/", {"name": "Sign-off", "body": 'See you "Monday".\n\n<script>alert(1)</script>'}
    )
    page = author.get(ADD).text
    assert ">Sign-off</option>" in page
    assert "<script>alert(1)" not in page
    assert "Sign-off" in author.get("/admin/posts/snippet/").text
    Snippet.objects.all().delete()
    assert "Snippet …" not in author.get(ADD).text


def test_the_page_shows_the_link_for_a_friend_and_until_when(author: Client) -> None:
    post = make_post(body="For a friend.")
    page = author.get(change(post))
    link = re.search(r'id="preview-link" type="text" readonly value="[^"]*(/preview/[^"]+)"', page.text)
    assert link
    until = timezone.now().astimezone(Publication.current().zone) + dt.timedelta(days=14)
    assert f"until {until.day} " in page.text
    assert "For a friend." in Client().get(link[1]).text


def test_the_form_works_without_a_script(author: Client) -> None:
    page = author.get(ADD).text
    assert 'data-part="tools" role="group" aria-label="Formatting" hidden' in page
    values = {"title": "Plain", "body": "Text.", "status": "draft", "visibility": "public", "version": ""}
    author.post(ADD, values)
    assert Post.objects.get().body == "Text."


def test_the_editor_is_quick_among_many_posts(
    author: Client, django_assert_max_num_queries: DjangoAssertNumQueries
) -> None:
    posts = [Post(title=f"Post {n}", slug=f"post-{n}", body="Words. " * 1500) for n in range(500)]
    Post.objects.bulk_create(posts)
    author.get("/admin/posts/post/")
    for path in ("/admin/posts/post/", change(Post.objects.all()[7]), ADD):
        began = time.perf_counter()
        with django_assert_max_num_queries(30):
            assert author.get(path).status_code == 200
        assert time.perf_counter() - began < 1, path

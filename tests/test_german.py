"""A German publication speaks German to its readers, everywhere and only there; the author's part stays English."""

import datetime as dt
import io
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from babel.messages import Message
from django.conf import settings as django_settings
from django.core import mail
from django.core.management import CommandError, call_command
from django.db import OperationalError, connection
from django.forms.models import model_to_dict
from django.test import Client
from django.utils import translation
from pytest_django.fixtures import DjangoAssertNumQueries

from newsletter import rendering
from newsletter.celery import app
from newsletter.management.commands import messages
from newsletter.models import Issue
from posts.models import Post, Publication, Tag
from subscribers import emails, links, submissions, tokens
from subscribers.models import Consent, ReaderCount, Subscriber, SystemMail
from subscribers.tasks import send_system_mail
from tests.factories import make_issue, make_post

CATALOGUE = messages.FOLDER / "de" / "LC_MESSAGES" / "django.po"
TAGS = re.compile(r"<style.*?</style>|<!--.*?-->|<[^>]*>", re.DOTALL)
SAID_IN_ATTRIBUTES = re.compile(r'\b(?:alt|aria-label|placeholder|title)="([^"]*)"')
OUTSIDE_GETTEXT = re.compile(
    r"{% (?:comment|blocktranslate).*?{% end(?:comment|blocktranslate) %}|{%.*?%}|{{.*?}}|{#.*?#}", re.DOTALL
)
NAMES = {"Atom", "RSS", "JSON", "UTF", "RFC"}


@pytest.fixture
def german(publication: Publication) -> Publication:
    publication.language, publication.time_zone = "de", "Europe/Berlin"
    publication.save()
    return publication


@pytest.fixture
def post(german: Publication) -> Post:
    made = make_post("Über Indizes", "Ein Satz.\n\n## Teil\n\n> [!NOTE]\n> Merke.\n", visibility="public")
    made.publish(at=dt.datetime(2026, 11, 24, 23, 30, tzinfo=dt.UTC))
    made.tags.add(Tag.objects.create(name="Indizes"))
    return made


@pytest.fixture
def worker() -> Iterator[None]:
    """A worker that is always there: what is asked of it is done at once."""
    app.conf.task_always_eager = True
    yield
    app.conf.task_always_eager = False


def german_texts() -> list[Message]:
    return list(messages.texts(messages.read(CATALOGUE)))


def seen(html: str) -> str:
    """Return what a person reads or hears of a page."""
    spoken = " | ".join(SAID_IN_ATTRIBUTES.findall(html))
    return " ".join(TAGS.sub(" | ", html.partition("<body")[2]).split()) + " | " + spoken


def english_in(html: str) -> set[str]:
    """Return the English texts of the catalogue that a page shows although there is a German one."""
    shown = seen(html)
    plain = [text for text in german_texts() if isinstance(text.id, str) and "%" not in text.id]
    return {text.id for text in plain if text.id != text.string and f"| {text.id} |" in shown}


# The catalogue


def test_every_text_for_readers_has_a_german_one_and_the_compiled_file_holds_it() -> None:
    call_command("messages", check=True)


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ('msgstr "Abonnieren"', 'msgstr ""', "no translation: Subscribe"),
        ('msgid "Subscribe"\nmsgstr "Abonnieren"', "", "not in the catalogue: Subscribe"),
        ('msgid "Subscribe"\n', 'msgid "Gone"\n', "nobody says it any more: Gone"),
        ('msgid "Subscribe"\n', '#, fuzzy\nmsgid "Subscribe"\n', "only guessed: Subscribe"),
        ('"Ausgabe %(number)s"', '"Ausgabe %(nummer)s"', "other placeholders: Issue"),
        ('"%(number)s Beiträge"', '"Beiträge"', "other placeholders: ('%(number)s post"),
        ('msgstr "Abonnieren"', 'msgstr "Bestellen"', "django.mo is not what django.po compiles to"),
        ('"%(minutes)s Minuten"', '"%(minutes)s Min."', "django.mo is not what django.po compiles to"),
    ],
)
def test_a_fault_of_the_catalogue_is_found(
    old: str, new: str, fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = Path(shutil.copytree(messages.FOLDER, tmp_path / "locale"))
    monkeypatch.setattr(messages, "FOLDER", copy)
    path = copy / "de" / "LC_MESSAGES" / "django.po"
    text = path.read_text("utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), "utf-8")
    with pytest.raises(CommandError, match=re.escape(fault)):
        call_command("messages", check=True)


def test_collecting_again_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = Path(shutil.copytree(messages.FOLDER, tmp_path / "locale"))
    monkeypatch.setattr(messages, "FOLDER", copy)
    files = [copy / "de" / "LC_MESSAGES" / name for name in ("django.po", "django.mo")]
    call_command("messages")
    once = [path.read_bytes() for path in files]
    call_command("messages")
    assert [path.read_bytes() for path in files] == once


def test_the_german_is_typeset_and_says_du() -> None:
    for text in german_texts():
        for string in messages.strings_of(text):
            assert not re.search(r"""["']|\.\.\.| - |“[^“]*”|\b(?:Sie|Ihnen|Ihre?[mnrs]?)\b""", string), string
            assert string.count("„") == string.count("“"), string
            assert re.findall(r"^\s|\s$|[:?]$", string) == re.findall(r"^\s|\s$|[:?]$", str(text.id)), string


@pytest.mark.parametrize("path", [path for path in messages.spoken() if path.suffix == ".html"], ids=str)
def test_no_words_stand_outside_gettext(path: Path) -> None:
    bare = OUTSIDE_GETTEXT.sub("", path.read_text("utf-8"))
    words = re.findall(r"[A-Za-z]{3,}", TAGS.sub(" ", bare) + " ".join(SAID_IN_ATTRIBUTES.findall(bare)))
    assert set(words) - NAMES - {"you", "example", "com"} == set()


# Pages

DOORS = [
    *("/", "/posts/", "/posts/?year=2026", "/posts/uber-indizes/", "/tags/indizes/", "/search/", "/search/?q=Satz"),
    *("/search/?q=nirgends", "/about/", "/privacy/", "/issues/", "/subscribe/", "/subscribe/check-your-inbox/"),
    *("/preferences/", "/preferences/abc/", "/subscribe/confirm/abc/", "/nothing/here/", "/posts/nothing/"),
]


@pytest.mark.parametrize("door", DOORS)
def test_a_page_is_german(client: Client, post: Post, door: str) -> None:
    html = client.get(door).content.decode()
    assert '<html lang="de">' in html
    assert "Beiträge" in seen(html)
    assert english_in(html) == set()


def test_the_doors_of_a_reader_are_german(client: Client, german: Publication, alice: Subscriber) -> None:
    for door in (emails.confirm_url(alice), emails.never_url(alice), emails.unsubscribe_path(alice)):
        path = door.removeprefix(django_settings.SITE_URL)
        for response in (client.get(path), client.post(path, {"button": "1"})):
            assert english_in(response.content.decode()) == set()
    client.cookies["reader"] = links.begin_session(alice)
    assert "alice@example.org: du bekommst keine Mails." in client.get("/preferences/").content.decode()


def test_who_asks_has_no_say_in_the_language(post: Post) -> None:
    asked = [
        Client(headers=headers)
        for headers in ({}, {"Accept-Language": "en"}, {"Accept-Language": "fr"}, {"Cookie": "django_language=en"})
    ]
    assert len({client.get("/about/").content for client in asked}) == 1


def test_dates_and_numbers_are_german_and_of_the_publications_zone(client: Client, post: Post) -> None:
    assert ">25. November 2026</time>" in client.get("/posts/uber-indizes/").content.decode()
    for shown, written in [("999", "999"), ("14K", "14.000"), ("2M", "2\u00a0Mio.")]:
        ReaderCount.objects.update_or_create(pk=1, defaults={"shown": shown})
        assert f"{written} lesen" in client.get("/").content.decode()


def test_what_machines_read_knows_no_language(client: Client, post: Post, german: Publication) -> None:
    paths = [german.theme_url, "/robots.txt", "/sitemap.xml", "/feed.json"]
    spoken = [client.get(path).content for path in paths]
    Publication.objects.update(language="en")
    plain = [client.get(path).content for path in paths]
    assert [text.replace(b'"language": "de"', b'"language": "en"') for text in spoken] == plain


def test_a_picture_asks_the_database_nothing(
    client: Client, german: Publication, settings: Any, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    (Path(settings.MEDIA_ROOT) / "cover.png").write_bytes(b"pixels")
    with django_assert_num_queries(0):
        assert b"".join(client.get("/media/cover.png")) == b"pixels"


def test_the_admin_stays_english_and_nothing_leaks(client: Client, admin_client: Client, post: Post) -> None:
    assert b"Beitr" in client.get("/").content
    assert translation.get_language() == "en"
    html = admin_client.get(f"/{django_settings.ADMIN_PATH}/posts/post/").content.decode()
    assert '<html lang="en"' in html
    assert "Beiträge" not in html


def test_a_page_that_fails_is_german_too(client: Client, german: Publication) -> None:
    client.raise_request_exception = False
    client.get("/")

    def away(*_args: Any) -> None:
        raise OperationalError

    with connection.execute_wrapper(away):
        response = client.get("/")
    html = response.content.decode()
    assert response.status_code == 503
    assert '<html lang="de">' in html
    assert "Diese Seite geht gerade nicht" in html
    assert translation.get_language() == "en"


# Forms


def test_an_error_of_the_form_is_german(client: Client, german: Publication) -> None:
    data = {"address": "nobody", "token": "old"}
    html = client.post("/subscribe/form/", data).content.decode()
    assert "Dieses Formular war zu lange offen." in html
    assert english_in(html) == set()
    answer = client.post("/subscribe/form/", data, headers={"Accept": "application/json"}).json()
    assert answer["status"] == "invalid"
    assert answer["errors"]["token"] == ["Dieses Formular war zu lange offen. Bitte schick es noch einmal ab."]
    assert "gültige E-Mail-Adresse" in answer["errors"]["address"][0]


def test_the_consent_is_kept_in_the_words_that_were_read(client: Client, german: Publication) -> None:
    data = {"address": "erika@example.org", "token": tokens.form_token("subscribe")}
    client.post("/subscribe/form/", data)
    submissions.decide_waiting()
    consent = Consent.objects.get()
    assert (consent.language, consent.wording) == (
        "de",
        "Schickt mir jede Ausgabe per E-Mail. Ich kann jederzeit abbestellen.",
    )


# Mails


@pytest.mark.parametrize(
    ("kind", "subject", "words"),
    [
        ("confirm", "Bitte bestätige dein Abo von Query Notes", "Du warst das nicht?"),
        ("welcome", "Willkommen bei Query Notes", "Die nächste Ausgabe kommt von selbst zu dir."),
        ("already", "Du bekommst Query Notes schon", "Du liest schon mit, also hat sich nichts geändert."),
        ("magic_link", "Deine Einstellungen bei Query Notes", "Er gilt 30 Minuten lang und nur einmal"),
    ],
)
def test_a_mail_to_a_reader_is_german(
    german: Publication, bob: Subscriber, kind: str, subject: str, words: str
) -> None:
    send_system_mail(emails.owe(kind, subscriber=bob).pk)
    (sent,) = mail.outbox
    html = str(sent.alternatives[0][0])  # type: ignore[attr-defined]  # every system mail has two parts
    assert sent.subject == subject
    assert words in sent.body
    assert words in html
    assert '<html lang="de">' in html
    assert english_in(html) == set()
    assert translation.get_language() == "en"


def test_the_mail_to_confirm_names_day_and_hour_of_the_publication(german: Publication, bob: Subscriber) -> None:
    owed = emails.owe(SystemMail.Kind.CONFIRM, subscriber=bob)
    SystemMail.objects.update(created_at="2026-11-25T22:30Z")
    send_system_mail(owed.pk)
    assert "Am 25. November 2026 um 23:30 Uhr (Europe/Berlin) hat jemand" in mail.outbox[0].body


def test_an_alert_to_the_author_stays_english(german: Publication) -> None:
    context = {"event": "empty_slot", "due_at": "2026-11-30T08:00:00Z"}
    send_system_mail(emails.owe(SystemMail.Kind.ALERT, address="author@example.org", context=context).pk)
    assert mail.outbox[0].subject == "Nothing is scheduled for Monday 30 November 2026, 09:00 (Europe/Berlin)"


def test_the_frame_of_an_issue_is_german_whoever_renders_it(post: Post, alice: Subscriber) -> None:
    issue = make_issue(post, number=7)
    for language in ("en", "de"):
        with translation.override(language):
            html, text = rendering.preview_html(issue, alice), rendering.preview_text(issue, alice)
            assert translation.get_language() == language
        assert "Ausgabe 7 · " in html
        assert "Diese Mail geht an alice@example.org, weil Query Notes mit dieser Adresse abonniert" in html
        assert "Im Browser ansehen: http" in text
        assert "> HINWEIS" in text
        assert english_in(html) == set()


def test_an_issue_seen_in_the_browser_names_no_address(client: Client, post: Post) -> None:
    issue = make_issue(post)
    Issue.objects.update(prepared_at=dt.datetime(2026, 11, 25, tzinfo=dt.UTC))
    path = rendering.view_url(issue).removeprefix(django_settings.SITE_URL)
    assert "Diese Mail geht an dich, weil" in client.get(path).content.decode()


# What is kept with a post


def test_a_post_saved_by_an_english_author_says_german_things_to_readers(post: Post) -> None:
    assert 'aria-label="Link zu diesem Abschnitt"' in post.body_html
    assert ">Hinweis<" in post.body_html


def test_rendering_again_follows_the_language_and_leaves_the_rest(post: Post) -> None:
    before = Post.objects.values_list("updated_at", "published_at", "slug", "body_text").get()
    Publication.objects.update(language="en")
    call_command("render_posts", stdout=io.StringIO())
    after = Post.objects.get()
    assert 'aria-label="Link to this section"' in after.body_html
    assert ">Note<" in after.body_html
    assert (after.updated_at, after.published_at, after.slug) == before[:3]
    assert after.history.count() == post.history.count()


@pytest.mark.usefixtures("worker")
def test_a_change_of_the_language_in_the_admin_renders_the_posts_again(
    admin_client: Client, post: Post, german: Publication, django_capture_on_commit_callbacks: Any
) -> None:
    address = f"/{django_settings.ADMIN_PATH}/posts/publication/1/change/"
    kept = {name: value for name, value in model_to_dict(german).items() if value not in (None, "")}
    for language, says in (("en", "Link to this section"), ("de", "Link zu diesem Abschnitt")):
        with django_capture_on_commit_callbacks(execute=True):
            answer = admin_client.post(address, {**kept, "language": language})
        assert answer.status_code == 302
        assert says in Post.objects.get().body_html


def test_the_editors_preview_is_german(admin_client: Client, german: Publication) -> None:
    data = {"kind": "post", "title": "Neu", "body": "## Teil"}
    answer = admin_client.post(f"/{django_settings.ADMIN_PATH}/markdown/preview/", data).json()
    assert english_in(answer["html"]) == set()
    assert "Minute Lesezeit" in answer["html"]
    assert "Link zu diesem Abschnitt" in answer["html"]

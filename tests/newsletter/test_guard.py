"""Nobody comes into the admin by a password alone, what counts is confirmed, and guessing is slow."""

import re
import time
from typing import Any

import pytest
from allauth.mfa.models import Authenticator
from allauth.mfa.recovery_codes.internal.auth import RecoveryCodes
from allauth.mfa.totp.internal.auth import TOTP, format_hotp_value, generate_totp_secret, hotp_value
from django.contrib.auth.models import Permission, User
from django.contrib.sessions.models import Session
from django.core import mail
from django.core.cache import cache
from django.core.files.uploadedfile import SimpleUploadedFile
from django.core.management import CommandError, call_command
from django.test import Client
from django.utils import timezone

from newsletter.models import Issue
from posts.models import FRONT_PARTS, AuditEntry, Publication
from subscribers import importer
from subscribers.models import Import, Subscriber
from tests.factories import make_issue, make_slot

pytestmark = pytest.mark.usefixtures("publication", "guarded")
PASSWORD = "a long password"
ACCOUNT = "/admin/account"
LOGIN, AUTHENTICATE, CONFIRM = (
    f"{ACCOUNT}/login/",
    f"{ACCOUNT}/factor/authenticate/",
    f"{ACCOUNT}/factor/reauthenticate/",
)
SET_UP = f"{ACCOUNT}/factor/"
PUBLICATION = "/admin/posts/publication/1/change/"
PAGES = [
    "/admin/", "/admin/posts/post/", "/admin/posts/publication/1/change/", "/admin/subscribers/subscriber/",
    "/admin/auth/user/", "/admin/newsletter/delivery/history/", "/admin/posts/auditentry/", "/admin/jsi18n/",
    f"{ACCOUNT}/password/", f"{ACCOUNT}/factor/recovery-codes/", f"{ACCOUNT}/factor/recovery-codes/generate/",
]  # fmt: skip


@pytest.fixture
def guarded(settings: Any) -> None:
    settings.SECOND_FACTOR_REQUIRED = True
    cache.clear()


@pytest.fixture
def author() -> User:
    return User.objects.create_superuser("author", "author@example.org", PASSWORD)


@pytest.fixture
def secret(author: User) -> str:
    """The secret of the author's app."""
    secret = generate_totp_secret()
    TOTP.activate(author, secret)
    return secret


def code(secret: str, *, steps: int = 0) -> str:
    return format_hotp_value(hotp_value(secret, int(time.time()) // 30 + steps))


def type_password(client: Client, password: str = PASSWORD, user: str = "author", **extra: Any) -> Any:
    return client.post(LOGIN, {"login": user, "password": password}, **extra)


@pytest.fixture
def signed_in(client: Client, secret: str) -> Client:
    type_password(client)
    client.post(AUTHENTICATE, {"code": code(secret)})
    return client


def later(client: Client, seconds: int = 3600) -> None:
    """Let the session's proofs grow old."""
    session = client.session
    session["account_authentication_methods"] = [
        {**record, "at": record["at"] - seconds} for record in session["account_authentication_methods"]
    ]
    session.save()


@pytest.mark.parametrize("page", PAGES)
def test_without_a_second_factor_no_page_opens_but_the_one_to_set_it_up(
    client: Client, author: User, page: str
) -> None:
    type_password(client)
    for answer in (client.get(page), client.post(page, {"act": "now"})):
        assert (answer.status_code, answer.headers.get("Location")) == (302, SET_UP)
    assert "One more step" in client.get(SET_UP).text
    assert client.get(f"{ACCOUNT}/factor/totp/activate/").status_code == 200


@pytest.mark.django_db(transaction=True)
def test_a_second_factor_is_set_up_and_opens_the_desk(client: Client, author: User) -> None:
    assert type_password(client).headers["Location"] == "/admin/"
    found = re.search(r'class="secret">([A-Z2-7]+)<', client.get(f"{ACCOUNT}/factor/totp/activate/").text)
    assert found
    answer = client.post(f"{ACCOUNT}/factor/totp/activate/", {"code": code(found[1])}, follow=True)
    assert len(re.findall(r"<code>\d{8}</code>", answer.text)) == 10
    assert "<code>" not in client.get(f"{ACCOUNT}/factor/recovery-codes/").text
    assert client.get("/admin/posts/post/").status_code == 200


def test_a_session_begun_by_password_alone_ends_at_the_door_once_a_factor_is_set_up(
    client: Client, author: User
) -> None:
    type_password(client)
    TOTP.activate(author, generate_totp_secret())  # by the author, in another browser
    for page in [*PAGES, SET_UP, f"{ACCOUNT}/factor/totp/activate/", f"{ACCOUNT}/factor/webauthn/add/"]:
        assert client.get(page).headers["Location"].startswith(CONFIRM), page


def test_password_and_code_open_the_desk_and_either_alone_does_not(client: Client, secret: str) -> None:
    client.post(AUTHENTICATE, {"code": code(secret)})
    assert client.get("/admin/").status_code == 302
    assert type_password(client).headers["Location"] == AUTHENTICATE
    assert client.get("/admin/").headers["Location"].startswith("/admin/login/")
    client.post(AUTHENTICATE, {"code": code(secret)})
    assert client.get("/admin/posts/post/").status_code == 200


def test_a_code_works_once_even_while_clocks_that_differ_make_it_valid(client: Client, secret: str) -> None:
    used = code(secret, steps=1)
    type_password(client)
    client.post(AUTHENTICATE, {"code": used})
    stranger = Client()
    type_password(stranger)
    cache.delete(f"allauth.mfa.totp.used?user={User.objects.get().pk}&code={used}")  # allauth forgets it in 30 s
    assert "Incorrect code" in stranger.post(AUTHENTICATE, {"code": used}).text
    assert stranger.get("/admin/posts/post/").status_code == 302


def test_a_recovery_code_opens_the_desk_once(client: Client, author: User, secret: str) -> None:
    kept = RecoveryCodes.activate(author).get_unused_codes()[0]
    for opens in (True, False):
        visitor = Client()
        type_password(visitor)
        visitor.post(AUTHENTICATE, {"code": kept})
        assert (visitor.get("/admin/posts/post/").status_code == 200) is opens


def test_five_wrong_passwords_close_the_account_to_a_right_one_and_another_account_stays_open(
    client: Client, secret: str
) -> None:
    User.objects.create_user("editor", "editor@example.org", PASSWORD, is_staff=True)
    for n in range(5):
        type_password(client, "wrong", user="AUTHOR" if n % 2 else "author", headers={"host": f"localhost:{8000 + n}"})
    assert "Too many failed" in type_password(client).text
    assert type_password(client, user="editor").status_code == 302


def test_one_address_may_not_try_many_accounts(client: Client) -> None:
    answers = [type_password(client, "wrong", user=f"somebody{n}").text for n in range(11)]
    assert ["Too many failed" in answer for answer in answers] == [False] * 10 + [True]


def test_signing_in_anew_does_not_forgive_wrong_codes(client: Client, secret: str) -> None:
    for _n in range(5):
        type_password(client)
        client.post(AUTHENTICATE, {"code": "000000"})
    type_password(client)
    assert "Too many failed" in client.post(AUTHENTICATE, {"code": code(secret)}).text
    assert client.get("/admin/posts/post/").status_code == 302


def test_a_name_that_nobody_has_is_answered_as_a_wrong_password(client: Client, author: User) -> None:
    wrong, nobody = type_password(client, "wrong"), type_password(client, "wrong", user="nobody")
    assert wrong.status_code == nobody.status_code == 200
    assert strip(wrong.text, "author") == strip(nobody.text, "nobody")


def strip(page: str, name: str) -> str:
    """Return a page without what differs from visit to visit."""
    page = re.sub(r'(name="csrfmiddlewaretoken" value=")[^"]+', r"\1", page)
    return page.replace(f'value="{name}"', "")


def test_nobody_makes_an_account_for_himself(client: Client) -> None:
    data = {"username": "stranger", "password1": PASSWORD, "password2": PASSWORD, "email": "x@example.org"}
    assert client.post(f"{ACCOUNT}/signup/", data).status_code in (302, 404)
    assert not User.objects.exists()


def test_the_admins_own_pages_of_signing_in_lead_to_ours(client: Client, author: User) -> None:
    answer = client.post("/admin/login/?next=/admin/posts/post/", {"username": "author", "password": PASSWORD})
    assert answer.headers["Location"] == f"{LOGIN}?next=%2Fadmin%2Fposts%2Fpost%2F"
    assert "_auth_user_id" not in client.session
    assert client.get("/admin/password_change/").headers["Location"] == f"{ACCOUNT}/password/"


def test_one_who_is_no_staff_is_refused_without_a_loop(client: Client) -> None:
    client.force_login(User.objects.create_user("reader"))
    assert client.get("/admin/", follow=True).status_code == 403


def reset_mails(client: Client, address: str) -> str:
    answer = client.post(f"{ACCOUNT}/password/reset/", {"email": address}, follow=True)
    until = time.monotonic() + 3
    while not mail.outbox and time.monotonic() < until:
        time.sleep(0.05)
    return answer.text


def test_a_forgotten_password_is_changed_by_mail_and_the_second_factor_still_asked(
    client: Client, author: User, secret: str, settings: Any
) -> None:
    settings.SITE_URL = "https://news.example.org"
    reset_mails(client, "author@example.org")
    (message,) = mail.outbox
    assert message.to == ["author@example.org"]
    assert message.from_email == "Query Notes <author@example.org>"
    found = re.search(r"https://news\.example\.org(/\S+)", message.body)
    assert found
    form = client.get(found[1], follow=True)
    new = {"password1": "another long one", "password2": "another long one"}
    client.post(form.redirect_chain[-1][0], new)
    assert client.get("/admin/").status_code == 302
    assert type_password(client).status_code == 200
    assert type_password(client, "another long one").headers["Location"] == AUTHENTICATE


def test_asking_for_a_password_tells_nobody_whose_account_there_is(client: Client, author: User) -> None:
    known = reset_mails(client, "author@example.org")
    mail.outbox.clear()
    unknown = client.post(f"{ACCOUNT}/password/reset/", {"email": "nobody@example.org"}, follow=True).text
    assert strip(known, "") == strip(unknown, "")
    time.sleep(0.3)
    assert mail.outbox == []


def test_a_mailbox_gets_three_such_mails_an_hour(client: Client, author: User) -> None:
    answers = [
        client.post(f"{ACCOUNT}/password/reset/", {"email": "author@example.org"}).status_code for _n in range(4)
    ]
    assert answers == [302, 302, 302, 429]


def test_a_changed_password_ends_the_other_sessions(client: Client, secret: str, signed_in: Client) -> None:
    other = Client()
    type_password(other)
    other.post(AUTHENTICATE, {"code": code(secret, steps=1)})
    assert other.get("/admin/posts/post/").status_code == 200
    new = {"oldpassword": PASSWORD, "password1": "another long one", "password2": "another long one"}
    assert signed_in.post(f"{ACCOUNT}/password/", new).status_code == 302
    assert signed_in.get("/admin/posts/post/").status_code == 200
    assert other.get("/admin/posts/post/").status_code == 302


def test_secrets_of_second_factors_do_not_lie_open_in_the_database(
    client: Client, author: User, secret: str, settings: Any
) -> None:
    RecoveryCodes.activate(author)
    kept = [str(row.data) for row in Authenticator.objects.all()]
    assert not [data for data in kept if secret in data]
    settings.SECRET_KEY, settings.SECRET_KEY_FALLBACKS = "another key", [settings.SECRET_KEY]
    assert Authenticator.objects.get(type="totp").wrap().validate_code(code(secret))
    settings.SECRET_KEY_FALLBACKS = []
    type_password(client)
    assert "Incorrect code" in client.post(AUTHENTICATE, {"code": code(secret)}).text


# What counts is confirmed


@pytest.fixture
def issue(alice: Subscriber) -> Issue:
    return make_issue()


def press(client: Client, issue: Issue, **values: str) -> Any:
    return client.post(f"/admin/newsletter/issue/{issue.pk}/act/", values)


def test_one_who_has_just_signed_in_is_not_asked_again(signed_in: Client, issue: Issue) -> None:
    press(signed_in, issue, act="now", sure="1")
    issue.refresh_from_db()
    assert issue.state == Issue.State.SENDING


def test_sending_is_confirmed_and_then_done_as_it_was_pressed(signed_in: Client, issue: Issue, secret: str) -> None:
    later(signed_in)
    slot = make_slot()
    asked = press(signed_in, issue, act="schedule", slot=str(slot.pk))
    assert asked.headers["Location"].startswith(CONFIRM)
    issue.refresh_from_db()
    assert issue.state == Issue.State.DRAFT
    signed_in.post(asked.headers["Location"], {"code": code(secret, steps=1)})
    issue.refresh_from_db()
    assert (issue.state, issue.slot) == (Issue.State.SCHEDULED, slot)


@pytest.mark.parametrize("act", ["pause", "cancel"])
def test_stopping_never_waits_for_a_confirmation(signed_in: Client, issue: Issue, act: str) -> None:
    press(signed_in, issue, act="now", sure="1")
    later(signed_in)
    press(signed_in, issue, act=act, sure="1")
    issue.refresh_from_db()
    assert issue.state in (Issue.State.PAUSED, Issue.State.CANCELLED)


def publication_form(client: Client) -> dict[str, Any]:
    form = client.get(PUBLICATION).context["adminform"].form
    values = {name: form.get_initial_for_field(field, name) for name, field in form.fields.items()}
    places = zip(FRONT_PARTS, form["front_parts"].value(), strict=True)
    values |= {f"front_parts_{name}": place for (name, _label), place in places}
    return {name: value for name, value in values.items() if value not in (None, "") and "image" not in str(value)}


def test_settings_are_confirmed_before_they_open_and_what_was_typed_is_kept(signed_in: Client, secret: str) -> None:
    form = publication_form(signed_in)
    later(signed_in)
    assert signed_in.get(PUBLICATION).headers["Location"].startswith(CONFIRM)
    asked = signed_in.post(PUBLICATION + "?_changelist_filters=a", {**form, "tagline": "Typed for an hour"})
    assert asked.headers["Location"].startswith(CONFIRM)
    assert Publication.current().tagline == ""
    done = signed_in.post(asked.headers["Location"], {"code": code(secret, steps=1)})
    assert done.status_code == 302
    assert Publication.current().tagline == "Typed for an hour"


def test_an_image_that_could_not_be_kept_is_spoken_of(signed_in: Client, secret: str) -> None:
    form = publication_form(signed_in)
    later(signed_in)
    picture = SimpleUploadedFile("me.png", b"any bytes", content_type="image/png")
    asked = signed_in.post(PUBLICATION, {**form, "avatar": picture})
    assert "choose it once more" in signed_in.get(asked.headers["Location"]).text


@pytest.mark.parametrize("page", ["auth/user/", "auth/user/add/", "auth/group/"])
def test_accounts_are_confirmed(signed_in: Client, page: str) -> None:
    assert signed_in.get(f"/admin/{page}").status_code == 200
    later(signed_in)
    assert signed_in.get(f"/admin/{page}").headers["Location"].startswith(CONFIRM)


def test_a_script_is_told_in_words_instead_of_led_away(signed_in: Client, issue: Issue) -> None:
    later(signed_in)
    answer = signed_in.post(
        f"/admin/newsletter/issue/{issue.pk}/act/", {"act": "now"}, headers={"sec-fetch-mode": "cors"}
    )
    assert (answer.status_code, "confirm" in answer.text) == (403, True)


def test_moving_a_date_is_confirmed_and_looking_at_it_is_not(signed_in: Client) -> None:
    page = f"/admin/newsletter/slot/{make_slot().pk}/change/"
    later(signed_in)
    assert signed_in.get(page).status_code == 200
    assert signed_in.post(page).headers["Location"].startswith(CONFIRM)


@pytest.mark.parametrize(("ago", "becomes"), [(60, "Typed"), (3600, "")])
def test_what_was_given_up_long_ago_is_not_carried_out_by_opening_the_page(
    signed_in: Client, secret: str, ago: int, becomes: str
) -> None:
    form = publication_form(signed_in)
    later(signed_in)
    signed_in.post(PUBLICATION, {**form, "tagline": "Typed"})
    session = signed_in.session
    kept = session["account_reauthentication_state"]
    session["account_reauthentication_state"] = {**kept, "at": kept["at"] - ago}
    session.save()
    asked = signed_in.get(PUBLICATION)
    signed_in.post(asked.headers["Location"], {"code": code(secret, steps=1)})
    assert Publication.current().tagline == becomes


def test_bringing_readers_along_and_taking_them_out_is_confirmed(signed_in: Client, secret: str) -> None:
    found = importer.keep([b"email\nada@example.org\n"], "readers.csv", by="author")
    Import.objects.update(is_judged=True)
    start = f"/admin/readers/import/{found.pk}/start/"
    assert signed_in.get("/admin/readers/export/").status_code == 200
    later(signed_in)
    assert signed_in.post("/admin/readers/export/", {"format": "csv"}).headers["Location"].startswith(CONFIRM)
    asked = signed_in.post(start, {"attestation": "They signed up at a fair."})
    assert asked.headers["Location"].startswith(CONFIRM)
    assert Import.objects.get().state == Import.State.WAITING
    signed_in.post(asked.headers["Location"], {"code": code(secret, steps=1)})
    assert Import.objects.get().attestation == "They signed up at a fair."


@pytest.mark.parametrize("page", ["mfa/authenticator/", "account/emailaddress/"])
def test_second_factors_are_on_no_page_of_the_admins(signed_in: Client, page: str) -> None:
    assert signed_in.get(f"/admin/{page}").status_code == 404


# Letting somebody in again


def test_resetting_removes_all_factors_ends_the_sessions_and_is_noted(
    signed_in: Client, author: User, capsys: pytest.CaptureFixture[str]
) -> None:
    RecoveryCodes.activate(author)
    other = Client()
    other.force_login(User.objects.create_superuser("other", "other@example.org", PASSWORD))
    call_command("reset_second_factor", "author")
    assert "Removed of author: totp, recovery_codes. Sessions ended: 1." in capsys.readouterr().out
    assert not Authenticator.objects.exists()
    assert Session.objects.filter(expire_date__gt=timezone.now()).count() == 1
    assert signed_in.get("/admin/posts/post/").headers["Location"].startswith("/admin/login/")
    entry = AuditEntry.objects.get(act="account.factor_reset")
    assert (entry.subject, entry.actor) == ("author", "manage.py")
    assert entry.detail == {"factors": ["totp", "recovery_codes"], "sessions": 1}


def test_resetting_somebody_unknown_says_who_there_is(author: User) -> None:
    with pytest.raises(CommandError, match="no user “autor”"):
        call_command("reset_second_factor", "autor")


# What is noted


def acts() -> list[str]:
    return list(AuditEntry.objects.order_by("pk").values_list("act", flat=True))


def test_coming_in_and_being_refused_are_noted_and_a_mistyped_password_is_not(client: Client, secret: str) -> None:
    before = len(acts())
    type_password(client, "wrong")
    type_password(client, "wrong", user="my secret password")
    type_password(client)
    client.post(AUTHENTICATE, {"code": "000000"})
    client.post(AUTHENTICATE, {"code": code(secret)})
    assert acts()[before:] == ["account.refused", "account.refused", "account.sign_in"]
    entry = AuditEntry.objects.get(act="account.sign_in")
    assert (entry.actor, entry.detail) == ("author", {"how": ["password", "totp"], "network": "127.0.0.0/24"})
    assert not AuditEntry.objects.filter(subject__contains="secret").exists()


def test_who_made_whom_a_superuser_is_noted_and_never_a_password(signed_in: Client) -> None:
    add = {"username": "editor", "password1": "a longer word", "password2": "a longer word", "usable_password": "true"}
    signed_in.post("/admin/auth/user/add/", add)
    editor = User.objects.get(username="editor")
    editor.is_superuser = True
    editor.set_password("yet another word")
    editor.save()
    editor.user_permissions.add(Permission.objects.get(codename="send_issue"))
    added, changed, granted = AuditEntry.objects.filter(subject="editor").order_by("pk")
    assert (added.act, added.actor, granted.act) == ("person.add", "author", "permissions.add")
    assert changed.detail == {"fields": {"is_superuser": [False, True], "password": ["…", "…"]}}
    assert "send" in granted.detail["what"][0].lower()


def test_what_changes_of_the_publication_is_noted_with_old_and_new(signed_in: Client) -> None:
    form = publication_form(signed_in)
    signed_in.post(PUBLICATION, {**form, "tagline": "A letter a week"})
    signed_in.post(PUBLICATION, {**form, "tagline": "A letter a week"})
    entry = AuditEntry.objects.get(act="publication.change")
    assert (entry.actor, entry.detail) == ("author", {"fields": {"tagline": ["", "A letter a week"]}})


def test_the_pages_of_signing_in_run_nothing_inline_and_are_never_kept(client: Client) -> None:
    answer = client.get(LOGIN)
    policy = answer.headers["Content-Security-Policy"]
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert "no-store" in answer.headers["Cache-Control"]


def test_the_admin_runs_nothing_inline(signed_in: Client) -> None:
    policy = signed_in.get("/admin/posts/post/").headers["Content-Security-Policy"]
    scripts = next(part for part in policy.split("; ") if part.startswith("script-src"))
    assert scripts == "script-src 'self' 'unsafe-eval'"


def test_the_demo_says_that_a_password_is_enough(client: Client, author: User, settings: Any) -> None:
    settings.SECOND_FACTOR_REQUIRED = False
    type_password(client)
    assert "no second factor" in client.get("/admin/posts/post/").text

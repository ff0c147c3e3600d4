"""Trying an issue: tests to people, a look as a reader, and test mode, in which nothing reaches a reader."""

import email
import email.policy
from typing import Any

import pytest
from django.core import mail
from django.core.exceptions import ValidationError
from django.test import Client

from newsletter import checks, delivery, rendering
from newsletter.models import Delivery, Issue, PreviewGroup
from posts.models import AuditEntry
from subscribers import emails
from subscribers.models import Subscriber, SystemMail
from tests.factories import make_issue, make_readers
from tests.newsletter.test_composing import WRITES, editor, form, page, plain, press
from tests.smtpd import SmtpServer

pytestmark = pytest.mark.usefixtures("publication")
ME = "me@example.org"


@pytest.fixture
def author(admin_client: Client) -> Client:
    return admin_client


@pytest.fixture
def test_mode(settings: Any) -> str:
    settings.TEST_MODE_ADDRESS = ME
    return ME


def make_group(*addresses: str) -> PreviewGroup:
    return PreviewGroup.objects.create(name="Proofreaders", addresses="\n".join(addresses))


def parsed(content: bytes) -> Any:
    return email.message_from_bytes(content, policy=email.policy.default)


# Tests


def test_a_test_to_me_goes_to_the_address_of_my_account_with_what_was_typed(author: Client, relay: SmtpServer) -> None:
    words = press(author, make_issue(), "mine", subject="Typed just now")
    assert "A test went to admin@example.com." in words
    assert list(relay.recipients) == ["admin@example.com"]
    assert parsed(relay.mails[0].content)["Subject"] == "[Test] Typed just now"


def test_who_writes_may_test_to_his_own_address(client: Client, relay: SmtpServer) -> None:
    assert "A test went to editor@example.org." in press(editor(client, *WRITES), make_issue(), "mine")
    assert list(relay.recipients) == ["editor@example.org"]


def test_an_account_without_an_address_is_told_so(author: Client, admin_user: Any) -> None:
    admin_user.email = ""
    admin_user.save()
    assert "Your account has no e-mail address" in press(author, make_issue(), "mine")


def test_each_of_a_group_gets_a_mail_of_his_own(author: Client, relay: SmtpServer) -> None:
    group = make_group("one@example.org", " two@example.org ", "", "one@example.org")
    issue = make_issue()
    assert "Send a test to “Proofreaders”, 2 addresses" in plain(author.get(page(issue)).text)
    words = press(author, issue, f"group:{group.pk}")
    assert "A test went to one@example.org, two@example.org." in words
    assert [parsed(one.content)["To"] for one in relay.mails] == ["one@example.org", "two@example.org"]
    assert not Delivery.objects.exists()


def test_of_a_group_it_is_told_who_got_none_and_why(author: Client, relay: SmtpServer) -> None:
    group = make_group("one@example.org", "no@example.org", "three@example.org")
    relay.script["rcpt"] = lambda session: "550 5.1.1 Nobody here" if session.recipient == "no@example.org" else None
    words = press(author, make_issue(), f"group:{group.pk}")
    assert "A test went to one@example.org, three@example.org." in words
    assert "Not to no@example.org: " in words
    assert "5.1.1 Nobody here" in words
    assert AuditEntry.objects.get(act="issue.group").actor == "admin"


def test_a_relay_that_is_away_is_asked_once_for_a_whole_group(settings: Any) -> None:
    settings.SMTP_HOST, settings.SMTP_PORT = "127.0.0.1", 9
    failed = delivery.send_tests(make_issue(), ["one@example.org", "two@example.org"])
    assert list(failed) == ["one@example.org", "two@example.org"]


@pytest.mark.parametrize("address", ["nonsense", "a@[127.0.0.1]", "a@b.example, c@d.example"])
def test_a_group_takes_only_addresses_a_mail_can_go_to(author: Client, address: str) -> None:
    data = {"name": "x", "addresses": f"good@example.org\n{address}"}
    shown = author.post("/admin/newsletter/previewgroup/add/", data)
    assert "go to this address" in shown.text
    assert not PreviewGroup.objects.exists()


def test_a_group_is_no_list_of_readers() -> None:
    addresses = [f"p{n}@example.org" for n in range(PreviewGroup.MOST)]
    PreviewGroup(name="full", addresses="\n".join(addresses)).full_clean()
    with pytest.raises(ValidationError, match="25 addresses at the most"):
        PreviewGroup(name="more", addresses="\n".join([*addresses, "one@more.example.org"])).full_clean()


def test_a_group_that_is_gone_is_not_found(author: Client) -> None:
    issue = make_issue()
    assert author.post(page(issue), form(issue, act="group:9")).status_code == 404


# Looking at it as a reader


@pytest.mark.parametrize("part", ["preview", "text"])
def test_the_mail_is_seen_as_a_chosen_reader_gets_it(author: Client, alice: Subscriber, part: str) -> None:
    issue = make_issue(introduction="Dear {{ name|friend }},")
    path = f"/admin/newsletter/issue/{issue.pk}/{part}/"
    assert "Dear friend," in author.get(path).text
    shown = author.get(path, {"as": "ALICE@example.org"})
    assert "Dear Alice," in shown.text
    assert alice.address in shown.text
    assert "sandbox" in shown.headers["Content-Security-Policy"]
    assert shown.headers["X-Frame-Options"] == "SAMEORIGIN"


def test_an_address_that_is_nobodys_is_told_in_the_frame(author: Client) -> None:
    path = f"/admin/newsletter/issue/{make_issue().pk}/preview/"
    shown = author.get(path, {"as": "<b>nobody</b>"})
    assert shown.headers["Content-Type"].startswith("text/plain")
    assert "No reader has the address" in shown.text


def test_who_may_not_see_readers_looks_as_none(client: Client, alice: Subscriber) -> None:
    issue = make_issue()
    path = f"/admin/newsletter/issue/{issue.pk}/preview/"
    editor(client, "view_issue")
    assert client.get(path).status_code == 200
    assert client.get(path, {"as": alice.address}).status_code == 403
    assert "As the reader" not in client.get(page(issue)).text


# Test mode


def sent(issue: Issue) -> Issue:
    delivery.send_now(issue)
    while delivery.send_due(issue.pk):
        pass
    return issue


@pytest.mark.django_db(transaction=True)
def test_in_test_mode_each_copy_goes_to_the_author_and_names_its_reader(relay: SmtpServer, test_mode: str) -> None:
    reader, _other = make_readers(2)
    issue = sent(make_issue(subject="Hello {{ name|there }}"))
    assert dict(relay.recipients) == {test_mode: 2}
    mails = {str(parsed(one.content)["X-Original-To"]): parsed(one.content) for one in relay.mails}
    assert set(mails) == {"reader0@example.org", "reader1@example.org"}
    copy = mails[reader.address]
    assert copy["To"] == test_mode
    assert copy["Subject"] == "[Test mode, for reader0@example.org] Hello there"
    for kind in ("plain", "html"):
        words = copy.get_body((kind,)).get_content()
        assert "this mail was for reader0@example.org and did not go there" in words
        assert str(reader.unsubscribe_id) not in words
    assert str(reader.unsubscribe_id) not in str(copy["List-Unsubscribe"])
    assert issue.counts().sent == 2


@pytest.mark.django_db(transaction=True)
def test_in_test_mode_a_bounce_does_not_come_home_as_the_readers(
    relay: SmtpServer, test_mode: str, settings: Any
) -> None:
    settings.BOUNCE_DOMAIN = "bounces.example.org"
    make_readers(1)
    sent(make_issue())
    assert relay.mails[0].sender == "author@example.org"


@pytest.mark.django_db(transaction=True)
def test_outside_test_mode_nothing_is_marked(relay: SmtpServer, alice: Subscriber) -> None:
    sent(make_issue())
    (one,) = relay.mails
    assert list(relay.recipients) == [alice.address]
    assert b"Test mode" not in one.content
    assert b"X-Original-To" not in one.content


def test_the_frozen_source_and_the_page_on_the_web_carry_no_banner(alice: Subscriber, test_mode: str) -> None:
    issue = make_issue()
    delivery.send_now(issue)
    assert "Test mode" not in str(issue.source)
    assert "Test mode" not in rendering.web_html(issue)


def test_in_test_mode_a_test_goes_to_the_author_too(author: Client, relay: SmtpServer, test_mode: str) -> None:
    press(author, make_issue(), "test", to="somebody@example.org")
    assert list(relay.recipients) == [test_mode]
    assert parsed(relay.mails[0].content)["X-Original-To"] == "somebody@example.org"


def test_in_test_mode_system_mail_goes_to_the_author_and_names_the_reader(bob: Subscriber, test_mode: str) -> None:
    owed = emails.owe(SystemMail.Kind.CONFIRM, subscriber=bob)
    assert emails.send_due(owed.pk)
    (one,) = mail.outbox
    assert one.recipients() == [test_mode]
    assert one.extra_headers["X-Original-To"] == bob.address
    assert one.subject.startswith(f"[Test mode, for {bob.address}]")
    (alternative,) = one.alternatives
    for words in (str(one.body), str(alternative.content)):
        assert f"this mail was for {bob.address} and did not go there" in words
    assert str(alternative.content).index("<body") < str(alternative.content).index("Test mode")


def test_outside_test_mode_system_mail_goes_where_it_should(bob: Subscriber) -> None:
    assert emails.send_due(emails.owe(SystemMail.Kind.CONFIRM, subscriber=bob).pk)
    assert mail.outbox[0].recipients() == [bob.address]
    assert "Test mode" not in mail.outbox[0].subject


def test_the_banner_escapes_what_stands_in_it(bob: Subscriber, test_mode: str) -> None:
    Subscriber.objects.filter(pk=bob.pk).update(address='"<b>"@example.org')
    emails.send_due(emails.owe(SystemMail.Kind.CONFIRM, subscriber=Subscriber.objects.get(pk=bob.pk)).pk)
    assert "this mail was for &quot;&lt;b&gt;&quot;@example.org" in str(mail.outbox[0].alternatives[0].content)


def test_the_admin_says_so_on_every_page_while_it_is_on(author: Client, settings: Any) -> None:
    paths = ["/admin/", "/admin/newsletter/issue/", page(make_issue()), "/admin/newsletter/delivery/history/"]
    assert [path for path in paths if "Test mode" in author.get(path).text] == []
    settings.TEST_MODE_ADDRESS = "<me>@example.org"
    for path in paths:
        assert "Test mode: all mail goes to &lt;me&gt;@example.org" in author.get(path).text


def test_the_deploy_check_warns_of_it(test_mode: str) -> None:
    (message,) = [found for found in checks.check_production() if found.id == "masthead.W010"]
    assert test_mode in message.msg


@pytest.mark.parametrize("address", ["nonsense", "a@b.example, c@d.example"])
def test_a_test_mode_to_no_address_is_refused(settings: Any, address: str) -> None:
    settings.TEST_MODE_ADDRESS = address
    assert [found.id for found in checks.check_mail()] == ["masthead.E012"]

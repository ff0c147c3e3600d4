"""A change of address: nobody is moved without the new mailbox, and the old one can take it back."""

import re
from typing import Any

import pytest
from django.core import mail
from django.test import Client

from subscribers import emails, links, moving, subscription
from subscribers.models import AddressChange, Consent, MagicLink, Subscriber, Suppression, SystemMail
from subscribers.views.doors import SESSION_COOKIE

pytestmark = pytest.mark.usefixtures("publication")
NEW = "ada@example.com"


@pytest.fixture
def desk(client: Client, alice: Subscriber) -> Client:
    client.cookies[SESSION_COOKIE] = links.begin_session(alice)
    return client


def ask(desk: Client, address: str = NEW) -> Any:
    return desk.post("/preferences/", {"act": "address", "new_address": address})


def mailed() -> dict[str, str]:
    """Send what is owed and return the path that stands in the mail to each address."""
    mail.outbox.clear()
    emails.send_all_due(limit=10)
    found = {
        letter.to[0]: re.search(r"/preferences/[a-z]+-address/[\w-]+/", str(letter.body)) for letter in mail.outbox
    }
    return {address: match.group() for address, match in found.items() if match}


def address_of(reader: Subscriber) -> str:
    reader.refresh_from_db()
    return reader.address


def test_abu_11_the_new_address_confirms_and_the_old_one_counts_until_then(desk: Client, alice: Subscriber) -> None:
    assert ask(desk).status_code == 302
    paths = mailed()
    assert set(paths) == {"alice@example.org", NEW}
    for _n in range(3):
        assert Client().get(paths[NEW]).status_code == 200
    assert address_of(alice) == "alice@example.org"
    assert NEW in Client().post(paths[NEW]).text
    assert (address_of(alice), alice.key) == (NEW, NEW)
    assert Subscriber.objects.mailable().get() == alice
    assert alice.consents.get(kind=Consent.Kind.CHANGED).detail == {"address": NEW}
    assert Client().post(paths[NEW]).status_code == 410


def test_abu_8_a_change_of_address_ends_every_key_and_session(desk: Client, alice: Subscriber) -> None:
    ask(desk)
    key = links.new_link(alice, MagicLink.Purpose.PREFERENCES)
    Client().post(mailed()[NEW])
    assert not alice.sessions.exists()
    assert links.redeem(key, MagicLink.Purpose.PREFERENCES) is None


def test_abu_11_the_old_address_takes_it_back_before(desk: Client, alice: Subscriber) -> None:
    ask(desk)
    paths = mailed()
    assert Client().get(paths["alice@example.org"]).status_code == 200
    Client().post(paths["alice@example.org"])
    assert Client().post(paths[NEW]).status_code == 410
    assert address_of(alice) == "alice@example.org"
    assert not alice.sessions.exists()


def test_abu_11_the_old_address_takes_it_back_after_and_all_that_came_after_it(desk: Client, alice: Subscriber) -> None:
    ask(desk)
    first = mailed()
    Client().post(first[NEW])
    desk.cookies[SESSION_COOKIE] = links.begin_session(alice)
    ask(desk, "thief@example.net")
    second = mailed()
    Client().post(second["thief@example.net"])
    subscription.unsubscribe(alice.pk)  # who stole it leaves, too, and that ends no key of the old address
    assert address_of(alice) == "thief@example.net"
    assert "shut out" in Client().post(first["alice@example.org"]).text
    assert address_of(alice) == "alice@example.org"
    assert Client().post(second[NEW]).status_code == 200  # its change is taken back already: nothing happens twice
    assert address_of(alice) == "alice@example.org"
    assert not AddressChange.objects.filter(revoked_at=None).exists()


def test_abu_11_a_word_of_a_change_that_was_replaced_takes_the_later_one_back(desk: Client, alice: Subscriber) -> None:
    ask(desk)
    first = mailed()
    ask(desk, "thief@example.net")
    Client().post(mailed()["thief@example.net"])
    Client().post(first["alice@example.org"])
    assert address_of(alice) == "alice@example.org"


def test_abu_11_the_desk_says_the_same_whatever_the_new_address_is(
    desk: Client, alice: Subscriber, bob: Subscriber, dave: Subscriber
) -> None:
    answers = set()
    for address in ("nobody@example.com", bob.address, dave.address):
        AddressChange.objects.all().delete()
        answer = ask(desk, address)
        answers.add((answer.status_code, answer.headers["Location"]))
    assert len(answers) == 1
    assert not SystemMail.objects.filter(address=dave.address).exists()


def test_an_address_that_is_a_reader_is_not_merged(desk: Client, alice: Subscriber, carol: Subscriber) -> None:
    ask(desk, carol.address)
    assert "nothing was changed" in Client().post(mailed()[carol.address]).text
    assert address_of(alice) == "alice@example.org"
    assert address_of(carol) == "carol@example.org"


def test_an_address_that_never_confirmed_gives_way(desk: Client, alice: Subscriber, bob: Subscriber) -> None:
    ask(desk, bob.address)
    Client().post(mailed()[bob.address])
    assert address_of(alice) == "bob@example.org"
    assert not Subscriber.objects.filter(pk=bob.pk).exists()


def test_nobody_can_have_many_strangers_mailed_from_his_desk(desk: Client, alice: Subscriber) -> None:
    answers = [ask(desk, f"stranger{n}@example.com").status_code for n in range(5)]
    assert answers == [302, 302, 302, 422, 422]
    assert SystemMail.objects.filter(kind="new_address").count() == moving.MOST_A_DAY


def test_a_malformed_address_is_refused_beside_the_field(desk: Client, alice: Subscriber) -> None:
    page = ask(desk, "ada@")
    assert page.status_code == 422
    assert page.context["address"].errors["new_address"]


def test_a_suppression_of_the_new_address_holds(desk: Client, alice: Subscriber) -> None:
    ask(desk)
    path = mailed()[NEW]
    subscription.suppress(NEW, reason=Suppression.Reason.ASKED)
    Client().post(path)
    alice.refresh_from_db()
    assert not Subscriber.objects.mailable().filter(address=NEW).exists()


def test_abu_14_links_name_the_sites_own_address_whatever_host_was_asked(desk: Client, settings: Any) -> None:
    settings.ALLOWED_HOSTS = ["*"]
    desk.post("/preferences/", {"act": "address", "new_address": NEW}, headers={"host": "evil.example"})
    mailed()
    assert len(mail.outbox) == 2
    for letter in mail.outbox:
        assert "evil.example" not in letter.message().as_string()
        assert settings.SITE_URL in str(letter.body)

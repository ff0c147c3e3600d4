"""What stands between the sign-up form and the database, layer by layer: ABU-3 to ABU-7 and ABU-12."""

import datetime as dt
import json
import re
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import time_machine
from django.conf import settings as django_settings
from django.core import mail
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from newsletter import alarms
from subscribers import addresses, emails, names, submissions, subscription, throttling, tokens
from subscribers.models import Consent, Submission, Subscriber, SystemMail
from subscribers.views import author
from tests.nameserver import NameServer

Join = Callable[..., Any]
DISPOSABLE = "somebody@mailinator.com"
FORM = "/subscribe/form/"


def confirmations() -> int:
    return SystemMail.objects.filter(kind=SystemMail.Kind.CONFIRM).count()


@pytest.fixture
def everybody(
    publication: object, alice: Subscriber, bob: Subscriber, carol: Subscriber, dave: Subscriber, settings: Any
) -> list[str]:
    """An address of each kind, a throw-away one included, which is refused."""
    settings.REFUSE_DISPOSABLE = True
    return ["nobody@example.org", DISPOSABLE, *(reader.address for reader in (alice, bob, carol, dave))]


# ABU-3: what one mailbox may be sent


@pytest.mark.parametrize(
    "spellings",
    [
        ["ada@example.org", "ADA@example.org", "ada+1@example.org", "ada+2@example.org"],
        ["ada.lovelace@gmail.com", "adalovelace@gmail.com", "a.d.a.lovelace+x@googlemail.com"],
    ],
)
def test_abu_3_a_mailbox_gets_one_confirmation_in_15_minutes_however_it_is_spelt(
    join: Join, spellings: list[str]
) -> None:
    for address in spellings:
        join(address)
    assert confirmations() == 1


def test_abu_3_dots_make_another_mailbox_everywhere_but_at_gmail(join: Join) -> None:
    for address in ("ada.lovelace@example.org", "adalovelace@example.org"):
        join(address)
    assert confirmations() == 2


def test_abu_3_a_mailbox_gets_three_a_day_and_five_a_month(join: Join) -> None:
    now, sent = timezone.now(), []
    for hours in (0, 1, 2, 3, 30, 60, 90, 120, 24 * 29):
        with time_machine.travel(now + dt.timedelta(hours=hours), tick=False):
            join("ada@example.org")
            sent.append(confirmations())
    assert sent == [1, 2, 3, 3, 4, 4, 4, 4, 4]  # and the reminder is the fifth


def test_abu_3_what_was_sent_still_counts_when_the_reader_is_gone(join: Join) -> None:
    join("ada@example.org")
    subscription.forget_unconfirmed(after=dt.timedelta(0))
    assert not Subscriber.objects.exists()
    join("ada@example.org")
    assert confirmations() == 1


@pytest.mark.django_db(transaction=True)
def test_abu_3_two_spellings_at_once_get_one_mail(publication: object) -> None:
    barrier = threading.Barrier(4)

    def ask(n: int) -> None:
        barrier.wait()
        subscription.join(f"ada+{n}@example.org", subscription.NOWHERE)
        connection.close()

    threads = [threading.Thread(target=ask, args=[n]) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert confirmations() == 1


# ABU-4: what a network and everybody may do


def test_abu_4_a_network_that_asks_too_often_is_told_so(join: Join, client: Client, settings: Any) -> None:
    settings.SIGNUPS_PER_NETWORK = 5
    answers = [join(f"reader{n}@example.org") for n in range(6)]
    assert [answer.status_code for answer in answers] == [302] * 5 + [429]
    assert answers[-1]["Retry-After"] == "3600"
    assert "try again in an hour" in answers[-1].text
    assert 'value="reader5@example.org"' in answers[-1].text
    assert confirmations() == 5
    link = client.post("/preferences/", {"address": "reader0@example.org"})
    assert (link.status_code, "try again in an hour" in link.text) == (429, True)


@pytest.mark.parametrize(
    ("one", "near", "far"),
    [("192.0.2.7", "192.0.2.200", "198.51.100.7"), ("2001:db8::7", "2001:db8::9", "2001:db8:0:1::")],
)
def test_abu_4_a_network_is_a_24_or_a_64(publication: object, settings: Any, one: str, near: str, far: str) -> None:
    settings.SIGNUPS_PER_NETWORK = 1
    submissions.submit(Submission.Kind.JOIN, "ada@example.org", subscription.Circumstances(ip=one))
    assert [throttling.network_allows(ip) for ip in (one, near, far)] == [False, False, True]
    with time_machine.travel(timezone.now() + dt.timedelta(minutes=61)):
        assert throttling.network_allows(one)


def test_abu_4_the_whole_site_takes_so_many_an_hour(publication: object, settings: Any) -> None:
    settings.SIGNUPS_PER_HOUR = 3
    answers = [
        Client(REMOTE_ADDR=f"192.0.{n}.1").post(FORM, filled(f"reader{n}@example.org")).status_code for n in range(4)
    ]
    assert answers == [302, 302, 302, 429]


@pytest.fixture
def flood(publication: object, settings: Any) -> None:
    """Many have signed up within the hour, and nobody has confirmed."""
    settings.CHALLENGE_FROM = 10
    for n in range(10):
        submissions.submit(Submission.Kind.JOIN, f"victim{n}@example.org", subscription.NOWHERE)
    submissions.decide_waiting()


def filled(address: str, **values: str) -> dict[str, str]:
    return {"address": address, "token": tokens.form_token("subscribe"), **values}


def hidden(page: str) -> dict[str, str]:
    return dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)"', page))


@pytest.mark.usefixtures("flood")
def test_abu_4_while_nobody_confirms_a_person_presses_once_more(client: Client) -> None:
    asked = client.post(FORM, filled("ada@example.org", utm_campaign="spring"))
    assert (asked.status_code, "One more press" in asked.text) == (422, True)
    pressed = hidden(asked.text)
    assert client.post(FORM, pressed).status_code == 422  # sooner than a person could
    with time_machine.travel(timezone.now() + dt.timedelta(seconds=4)):
        assert client.post(FORM, pressed).status_code == 302
    submissions.decide_waiting()
    ada = Subscriber.objects.with_address("ada@example.org").get()
    assert ada.consents.get().detail == {"source": "", "utm_campaign": "spring"}


@pytest.mark.usefixtures("flood")
def test_abu_4_a_challenge_serves_no_other_address_nor_network(client: Client) -> None:
    pressed = hidden(client.post(FORM, filled("ada@example.org")).text)
    with time_machine.travel(timezone.now() + dt.timedelta(seconds=4)):
        assert client.post(FORM, pressed | {"address": "eve@example.org"}).status_code == 422
        assert client.post(FORM, pressed, REMOTE_ADDR="198.51.100.9").status_code == 422


@pytest.mark.usefixtures("flood")
def test_abu_4_a_script_is_told_how_to_go_on(client: Client) -> None:
    told = client.post(FORM, filled("ada@example.org"), content_type="application/json").json()
    assert (told["status"], told["wait_seconds"]) == ("challenge", 2)
    with time_machine.travel(timezone.now() + dt.timedelta(seconds=4)):
        again = filled("ada@example.org", challenge=told["challenge"])
        assert client.post(FORM, again, content_type="application/json").json() == {"status": "check_inbox"}


@pytest.mark.usefixtures("flood")
def test_abu_4_the_brake_is_off_when_people_confirm_or_an_hour_has_gone(bob: Subscriber) -> None:
    assert throttling.is_flooded()
    for _n in range(2):
        Consent.objects.create(subscriber=bob, kind=Consent.Kind.CONFIRMED)
    assert not throttling.is_flooded()
    with time_machine.travel(timezone.now() + dt.timedelta(minutes=61)):
        assert not throttling.is_flooded()


@pytest.mark.usefixtures("flood")
def test_abu_4_the_author_is_told_of_a_flood_once_a_day() -> None:
    for _n in range(2):
        alarms.look()
    alert = SystemMail.objects.get(kind=SystemMail.Kind.ALERT, context__event="flood")
    emails.send_due(alert.pk)
    assert "10" in str(mail.outbox[-1].body)
    assert mail.outbox[-1].subject == "Many sign-ups, hardly any confirmed"


# ABU-5: what a form has to have


def test_abu_5_a_robot_that_fills_the_hidden_field_sees_success(join: Join) -> None:
    person, robot = join("ada@example.org"), join("robot@example.org", website="https://spam.example")
    assert (robot.status_code, robot.content, robot.headers["Location"]) == (
        person.status_code, person.content, person.headers["Location"],
    )  # fmt: skip
    assert not Subscriber.objects.with_address("robot@example.org").exists()


def test_abu_5_a_form_without_its_token_is_shown_again_with_what_was_typed(join: Join) -> None:
    response = join("ada@example.org", token="", source="blog", utm_source="letter")
    assert response.status_code == 422
    assert 'value="ada@example.org"' in response.text
    kept = hidden(response.text)
    assert (kept["source"], kept["utm_source"]) == ("blog", "letter")
    assert not Submission.objects.exists()
    with time_machine.travel(timezone.now() + dt.timedelta(seconds=3)):
        assert join("ada@example.org", **kept).status_code == 302


@pytest.mark.parametrize(("days", "status"), [(0, 302), (1, 302), (2, 302), (3, 422)])
def test_abu_5_the_token_of_a_kept_page_counts_for_three_days(join: Join, days: int, status: int) -> None:
    token = tokens.form_token("subscribe", day=timezone.now().date() - dt.timedelta(days=days))
    assert join("ada@example.org", token=token).status_code == status


def test_abu_5_the_forms_own_page_knows_when_it_was_made(client: Client, join: Join) -> None:
    now = timezone.now()
    with time_machine.travel(now, tick=False):
        token = hidden(client.get("/subscribe/").text)["token"]
        quick = join("ada@example.org", token=token)
        assert (quick.status_code, "That was very quick" in quick.text) == (422, True)
        assert hidden(quick.text)["token"] == token
    for seconds, status in ((2, 302), (23 * 3600, 302), (24 * 3600 + 1, 422)):
        with time_machine.travel(now + dt.timedelta(seconds=seconds), tick=False):
            assert join("ada@example.org", token=token).status_code == status


@pytest.mark.parametrize("token", ["1.x", "99999999999999999999.x", "-1.", ".", "x" * 32, "ä.ö", "0x10.00"])
def test_abu_5_a_forged_token_is_none(join: Join, token: str) -> None:
    assert join("ada@example.org", token=token).status_code == 422


def test_abu_5_another_forms_token_is_none(join: Join) -> None:
    assert join("ada@example.org", token=tokens.form_token("other")).status_code == 422


def test_abu_5_the_origin_is_the_source_and_refuses_nobody(join: Join, client: Client) -> None:
    client.post(FORM, filled("ada@example.org"), headers={"Origin": "https://blog.example.com"})
    client.post(FORM, filled("bo@example.org"), headers={"Origin": django_settings.SITE_URL})
    client.post(FORM, filled("cy@example.org"), headers={"Origin": "null"})
    submissions.decide_waiting()
    assert dict(Subscriber.objects.values_list("key", "source")) == {
        "ada@example.org": "https://blog.example.com", "bo@example.org": "", "cy@example.org": "",
    }  # fmt: skip


def test_abu_5_json_is_understood_and_null_is_empty(client: Client, publication: object) -> None:
    data = json.dumps({**filled("ada@example.org"), "website": None, "source": 7})
    response = client.post(FORM, data, content_type="application/json")
    assert response.json() == {"status": "check_inbox"}
    invalid = client.post(FORM, {"address": "ada"}, content_type="application/json")
    assert (invalid.status_code, sorted(invalid.json()["errors"])) == (422, ["address", "token"])


@pytest.mark.parametrize("body", ["[1", "[]", '"text"', "[" * 5000, "9" * 6000, "\xff"])
def test_abu_5_json_that_is_no_object_is_refused(client: Client, publication: object, body: str) -> None:
    broken = client.post(FORM, body.encode("latin-1"), content_type="application/json")
    assert (broken.status_code, broken.json()["status"]) == (413, "invalid")


def test_abu_5_a_request_over_8_kb_is_refused(join: Join) -> None:
    assert join("ada@example.org", name="x" * 9000).status_code == 413


# ABU-6: nobody learns whether an address is known


def answer(response: Any) -> tuple[Any, ...]:
    return response.status_code, response.content, tuple(sorted(response.headers.items()))


@pytest.mark.parametrize("kind", ["application/json", "application/x-www-form-urlencoded"])
def test_abu_6_every_address_gets_the_same_answer_at_sign_up(client: Client, everybody: list[str], kind: str) -> None:
    sent = [filled(address) for address in everybody]
    bodies = [json.dumps(each) if "json" in kind else "&".join(f"{k}={v}" for k, v in each.items()) for each in sent]
    assert len({answer(client.post(FORM, body, content_type=kind)) for body in bodies}) == 1


def test_abu_6_every_address_gets_the_same_answer_at_the_preferences(client: Client, everybody: list[str]) -> None:
    assert len({answer(client.post("/preferences/", {"address": address})) for address in everybody}) == 1


@pytest.mark.parametrize("path", [FORM, "/preferences/"])
def test_abu_6_the_same_is_asked_of_the_database_for_every_address(
    client: Client, everybody: list[str], path: str
) -> None:
    client.post(path, filled("warm@example.org"))
    seen = set()
    for address in everybody:
        with CaptureQueriesContext(connection) as asked:
            client.post(path, filled(address))
        seen.add(tuple(re.sub(r"'[^']*'(?:::\w+)?|\d+", "?", each["sql"]) for each in asked))
    assert len(seen) == 1
    assert not any('"key" =' in sql for sql in seen.pop())


def test_abu_6_the_mail_tells_the_owner_the_truth(client: Client, everybody: list[str]) -> None:
    for address in everybody:
        client.post(FORM, filled(address))
    submissions.decide_waiting()
    emails.send_all_due(limit=20)
    assert {message.to[0]: message.subject for message in mail.outbox} == {
        "nobody@example.org": "Confirm your subscription to Query Notes",
        DISPOSABLE: "Query Notes does not go to this address",
        "alice@example.org": "You already get Query Notes",
        "bob@example.org": "Confirm your subscription to Query Notes",
        "carol@example.org": "Confirm your subscription to Query Notes",
    }
    assert not SystemMail.objects.filter(address=DISPOSABLE).exists()  # it says that it is not kept


def test_abu_6_a_decided_form_keeps_nothing_of_the_person(join: Join) -> None:
    join("ada@example.org")
    assert Submission.objects.get().sent == {}
    with time_machine.travel(timezone.now() + dt.timedelta(days=3)):
        submissions.forget_old()
    assert not Submission.objects.exists()


def test_a_form_waits_a_week_for_a_worker(client: Client, publication: object) -> None:
    client.post(FORM, filled("ada@example.org"))
    for days, left in ((6, 1), (8, 0)):
        with time_machine.travel(timezone.now() + dt.timedelta(days=days)):
            submissions.forget_old()
        assert Submission.objects.count() == left


def test_abu_6_a_form_is_decided_once(client: Client, publication: object) -> None:
    client.post(FORM, filled("ada@example.org"))
    waiting = Submission.objects.get()
    assert submissions.decide(waiting.pk)
    assert submissions.decide(waiting.pk) is None


# ABU-7: addresses that are not worth a mail


def test_abu_7_throw_away_domains_are_taken_unless_the_author_refuses_them(join: Join, settings: Any) -> None:
    join(DISPOSABLE)
    assert Subscriber.objects.count() == 1
    settings.REFUSE_DISPOSABLE = True
    join("other@mailinator.com")
    join("other@below.mailinator.com")
    assert Subscriber.objects.count() == 1


def test_abu_7_an_allowed_domain_is_taken_whatever_the_list_says(join: Join, settings: Any) -> None:
    settings.REFUSE_DISPOSABLE, settings.ALLOWED_DOMAINS = True, ["Mailinator.com"]
    join(DISPOSABLE)
    assert Subscriber.objects.count() == 1


@pytest.fixture
def nameserver(settings: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[NameServer]:
    """A name server that knows some domains, which the workers ask."""
    zone = {
        (".", "NS"): ["a.root-servers.net."],
        ("takes.example", "MX"): ["10 mail.takes.example."],
        ("old.example", "A"): ["192.0.2.1"],
        ("null.example", "MX"): ["0 ."],
        ("nothing.example", "TXT"): ['"no mail, no address"'],
    }
    settings.CHECK_MX = True
    with NameServer(zone, failing={"failing.example"}) as server:
        monkeypatch.setattr("dns.resolver.default_resolver", server.resolver)
        yield server


@pytest.mark.parametrize(
    ("domain", "taken"),
    [
        ("takes.example", True), ("old.example", True), ("failing.example", True),
        ("null.example", False), ("nothing.example", False), ("missing.example", False),
    ],
)  # fmt: skip
def test_abu_7_a_domain_that_takes_no_mail_is_sent_none(
    join: Join, nameserver: NameServer, domain: str, taken: bool
) -> None:
    assert join(f"ada@{domain}").status_code == 302
    assert Subscriber.objects.exists() == taken
    assert {kind for _name, kind in nameserver.asked} <= {"MX", "A", "AAAA", "NS"}


def test_abu_7_a_name_server_that_does_not_know_the_world_refuses_nobody() -> None:
    with NameServer({("inside.example", "A"): ["10.0.0.1"]}) as server:
        assert names.takes_mail("example.com", names.Names(server.resolver))


# ABU-12: forms on other sites


def test_abu_12_the_endpoint_answers_scripts_of_any_site_without_a_cookie(client: Client, publication: object) -> None:
    client.cookies["csrftoken"], client.cookies["sessionid"] = "malformed", "x" * 32
    asked = client.options(FORM, headers={"Origin": "https://blog.example.com"})
    assert (asked.status_code, asked["Access-Control-Allow-Methods"]) == (204, "POST")
    assert asked["Access-Control-Allow-Headers"] == "Content-Type"
    posted = client.post(FORM, filled("ada@example.org"), content_type="application/json")
    for response in (asked, posted):
        assert response["Access-Control-Allow-Origin"] == "*"
        assert "Access-Control-Allow-Credentials" not in response
        assert not response.cookies
    assert "Cookie" not in posted.get("Vary", "")


def test_abu_12_no_other_page_may_be_read_from_elsewhere_or_framed(client: Client, publication: object) -> None:
    for path in ("/", "/subscribe/", "/preferences/", reverse("subscribers:check")):
        page = client.get(path, headers={"Origin": "https://blog.example.com"})
        assert "Access-Control-Allow-Origin" not in page
        assert "frame-ancestors 'none'" in page["Content-Security-Policy"]


def test_abu_12_the_token_of_an_embedded_form_never_grows_old(join: Join, settings: Any) -> None:
    token = tokens.embedded_form_token("subscribe")
    with time_machine.travel(timezone.now() + dt.timedelta(days=1000)):
        assert join("ada@example.org", token=token).status_code == 302
    settings.SECRET_KEY, settings.SECRET_KEY_FALLBACKS = "another" * 8, [settings.SECRET_KEY]
    assert join("bo@example.org", token=token).status_code == 302
    settings.SECRET_KEY_FALLBACKS = []
    assert join("cy@example.org", token=token).status_code == 422


def test_abu_12_the_campaign_of_a_kept_page_is_known_by_the_address_it_was_sent_from(
    client: Client, publication: object
) -> None:
    page = f"{django_settings.SITE_URL}/posts/locks/?utm_source=letter&utm_medium=mail&x=1#end"
    client.post(FORM, filled("ada@example.org", utm_medium="said"), headers={"Referer": page})
    client.post(FORM, filled("bo@example.org"), headers={"Referer": "https://evil.example/?utm_source=other"})
    submissions.decide_waiting()
    told = dict(Consent.objects.values_list("subscriber__key", "detail"))
    assert told["ada@example.org"] == {"source": "", "utm_source": "letter", "utm_medium": "said"}
    assert told["bo@example.org"] == {"source": ""}


def test_the_consent_keeps_the_words_that_stood_with_the_form(client: Client, join: Join) -> None:
    join("ada@example.org")
    wording = Consent.objects.get().wording
    assert wording
    assert wording in client.get("/subscribe/").text
    assert wording in author.embedded_form({})


def test_what_a_page_says_of_itself_never_refuses_a_reader(join: Join) -> None:
    assert join("ada@example.org", source="x" * 500 + "\0", utm_term="a\nb" * 99).status_code == 302
    detail = Consent.objects.get().detail
    assert (len(detail["source"]), len(detail["utm_term"]), "\n" in detail["utm_term"]) == (100, 100, False)


def test_the_consent_tells_when_the_form_was_sent_and_not_when_a_worker_came(
    client: Client, publication: object
) -> None:
    now = timezone.now()
    with time_machine.travel(now, tick=False):
        client.post(FORM, filled("ada@example.org"))
    with time_machine.travel(now + dt.timedelta(hours=2), tick=False):
        submissions.decide_waiting()
    assert Consent.objects.get().at == now
    assert addresses.network("127.0.0.1") == Submission.objects.get().network

"""What the tests of the reader's doors share."""

from collections.abc import Callable
from typing import Any

import pytest
from django.db import connection
from django.forms.models import model_to_dict
from django.test import Client
from django.urls import reverse

from subscribers import emails, submissions, tokens
from subscribers.models import Subscriber


@pytest.fixture
def join(client: Client, publication: object) -> Callable[..., Any]:
    """Send the sign-up form as a browser would, and let a worker decide."""

    def send(address: str, **values: str) -> Any:
        data = {"address": address, "token": tokens.form_token("subscribe"), "website": "", **values}
        response = client.post(reverse("subscribers:subscribe_form"), data)
        submissions.decide_waiting()
        return response

    return send


@pytest.fixture
def confirm_path() -> Callable[[Subscriber], str]:
    """The path of a reader's confirmation link."""

    def path(subscriber: Subscriber) -> str:
        url = emails.confirm_url(subscriber)
        return url[url.index("/subscribe/") :]

    return path


@pytest.fixture
def row() -> Callable[[Subscriber], dict[str, Any]]:
    """All that the database holds of a reader, to compare before and after."""

    def read(subscriber: Subscriber) -> dict[str, Any]:
        fresh = Subscriber.objects.get(pk=subscriber.pk)
        return {**model_to_dict(fresh), "consents": fresh.consents.count(), "mail": fresh.system_mail.count()}

    return read


@pytest.fixture
def database() -> Callable[[], dict[str, str]]:
    """A fingerprint of each table that holds anything of a reader, to compare before and after."""

    def fingerprints() -> dict[str, str]:
        names = [name for name in connection.introspection.table_names() if name.startswith(("subscribers_", "news"))]
        with connection.cursor() as cursor:
            found = {}
            for name in names:
                cursor.execute(f"SELECT md5(string_agg(t::text, '|' ORDER BY t::text)) FROM {name} t")
                found[name] = cursor.fetchone()[0]
        return found

    return fingerprints

"""Every page is HTML that the strictest parser takes without a word, in each language, and fits its frame."""

import re
from collections.abc import Iterator

import html5lib
import pytest
from django.template import loader
from django.test import Client, override_settings

from posts.models import Publication
from subscribers import links
from subscribers.models import Subscriber
from subscribers.views.doors import SESSION_COOKIE
from tests import site

pytestmark = pytest.mark.django_db


@pytest.fixture
def pages(client: Client, publication: Publication, bob: Subscriber) -> Iterator[tuple[str, str]]:
    """The address and the text of every page that a visitor can come to."""
    site.make_site(publication)
    refused = client.post("/subscribe/form/", {"address": "ada@"}).text
    forged = Client(enforce_csrf_checks=True).post("/preferences/", {"address": "ada@example.org"}).text
    stand_alone = [(name, loader.get_template(name).render()) for name in ("400.html", "500.html", "503.html")]
    read = [(path, client.get(path).text) for path in [*site.PAGES, *site.doors(bob)]]
    client.cookies[SESSION_COOKIE] = links.begin_session(bob)
    return iter(
        [("refused", refused), ("forged", forged), *stand_alone, *read, ("session", client.get("/preferences/").text)]
    )


def test_every_page_parses_without_an_error(pages: Iterator[tuple[str, str]]) -> None:
    for path, text in pages:
        try:
            html5lib.HTMLParser(strict=True).parse(text)
        except html5lib.html5parser.ParseError as error:
            pytest.fail(f"{path}: {error}")


def test_every_page_has_one_title_one_heading_and_no_id_twice(pages: Iterator[tuple[str, str]]) -> None:
    for path, text in pages:
        tree = html5lib.parse(text, namespaceHTMLElements=False)
        ids = [element.get("id") for element in tree.iter() if element.get("id")]
        assert (len(tree.findall(".//title")), len(tree.findall(".//h1"))) == (1, 1), path
        assert sorted(ids) == sorted(set(ids)), path


def test_a_form_without_its_cookie_is_refused_in_the_sites_own_dress(client: Client, publication: Publication) -> None:
    response = Client(enforce_csrf_checks=True).post("/preferences/", {"address": "ada@example.org"})
    assert response.status_code == 403
    assert "This form was not taken" in response.text
    assert "Query Notes" in response.text


def test_the_navigation_names_the_page_that_is_open(client: Client, publication: Publication) -> None:
    current = re.compile(r'<a href="([^"]+)" aria-current="page"')
    assert current.findall(client.get("/posts/").text) == ["/posts/"]
    assert current.findall(client.get("/").text) == []


@override_settings(LANGUAGES=[("en", "English"), ("ar", "Arabic")])
def test_a_language_that_runs_from_the_right_is_set_so(client: Client, publication: Publication) -> None:
    assert '<html lang="en">' in client.get("/about/").text
    Publication.objects.update(language="ar")
    assert '<html lang="ar" dir="rtl">' in client.get("/posts/").text

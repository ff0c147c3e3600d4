"""The archive of issues and the mail in a browser: what was mailed only is seen only through its signed address."""

import pytest
from django.test import Client

from newsletter import delivery, rendering
from newsletter.models import Issue
from posts.models import Post
from subscribers.models import Subscriber
from tests.factories import make_issue, make_post

pytestmark = pytest.mark.usefixtures("publication")


def path(issue: Issue) -> str:
    url = rendering.view_url(issue)
    return url[url.index("/issues/") :]


@pytest.fixture
def issue(alice: Subscriber) -> Issue:
    secret = make_post(title="For readers only", body="Hush.", visibility=Post.Visibility.EMAIL_ONLY)
    issue = make_issue(make_post(), secret)
    delivery.send_now(issue)
    return issue


def test_the_archive_lists_what_went_out(client: Client, issue: Issue) -> None:
    make_issue(subject="Not yet")
    page = client.get("/issues/")
    assert "This week" in page.text
    assert "Not yet" not in page.text
    assert not page.cookies


def test_an_issue_shows_its_public_posts_alone(client: Client, issue: Issue) -> None:
    page = client.get(issue.get_absolute_url()).text
    assert "On vacuum" in page
    assert "For readers only" not in page


def test_the_signed_address_shows_the_whole_mail_and_no_reader(client: Client, issue: Issue, alice: Subscriber) -> None:
    page = client.get(path(issue))
    assert "Hush." in page.text
    assert alice.address not in page.text
    assert str(alice.unsubscribe_id) not in page.text
    assert "/u/" not in page.text
    assert page.headers["X-Robots-Tag"] == "noindex"
    assert "default-src 'none'" in page.headers["Content-Security-Policy"]


def test_a_forged_address_shows_nothing(client: Client, issue: Issue) -> None:
    assert client.get(path(issue)[:-2] + "x/").status_code == 404
    assert client.get("/issues/99/").status_code == 404


def test_a_draft_is_not_shown_even_by_its_signed_address(client: Client) -> None:
    assert client.get(path(make_issue())).status_code == 404

"""The relay that the tests of sending talk to."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.smtpd import SmtpServer


@pytest.fixture
def relay(settings: Any) -> Iterator[SmtpServer]:
    """A scriptable SMTP server, which the settings name as the relay."""
    with SmtpServer() as server:
        settings.SMTP_HOST, settings.SMTP_PORT = "127.0.0.1", server.port
        settings.SMTP_TIMEOUT = settings.SMTP_FINAL_TIMEOUT = 5
        yield server

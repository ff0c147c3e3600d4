"""What every test of faults stands on: scaled time, a relay with its own ledger, and the promise as one check."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.db import connection
from psycopg import sql

from newsletter.models import Delivery, Issue
from tests.smtpd import SmtpServer

# All durations of production divided by one factor: a lease of two minutes takes four seconds.
FACTOR = float(os.environ.get("FACTOR", "30"))
PRODUCTION = {
    "LEASE_SECONDS": 120,
    "RENEW_SECONDS": 30,
    "CLAIM_SECONDS": 60,
    "INTENT_TTL_SECONDS": 30,
    "RECONNECT_SECONDS": 30,
    "RETRY_FIRST_SECONDS": 300,
    "RETRY_MAX_SECONDS": 14400,
    "RETRY_FOR_SECONDS": 259200,
    "DISPATCH_SECONDS": 60,
    "SWEEP_SECONDS": 30,
    "SMTP_TIMEOUT": 300,
    "SMTP_FINAL_TIMEOUT": 600,
    "UNKNOWN_SETTLE_SECONDS": 900,
    "DATABASE_GRACE_SECONDS": 900,
    "QUOTA_SECONDS": 3600,
    "LATE_SECONDS": 300,
    "STALL_SECONDS": 600,
}
SCALED = {name: seconds / FACTOR for name, seconds in PRODUCTION.items()}
State = Delivery.State

WATCH_MOVES = """
CREATE FUNCTION pg_temp_check_move() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.state <> OLD.state AND NOT (OLD.state || '>' || NEW.state) = ANY ({allowed}) THEN
        RAISE EXCEPTION 'a copy may not go from % to %', OLD.state, NEW.state;
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER check_move BEFORE UPDATE OF state ON newsletter_delivery
    FOR EACH ROW EXECUTE FUNCTION pg_temp_check_move();
"""
UNWATCH = "DROP TRIGGER IF EXISTS check_move ON newsletter_delivery; DROP FUNCTION IF EXISTS pg_temp_check_move();"


@pytest.fixture
def relay(tmp_path: Path, settings: Any) -> Iterator[SmtpServer]:
    """A relay that writes down each recipient before it answers; the settings of this process name it too."""
    with SmtpServer(keep_content=False, log=tmp_path / "recipients.log") as server:
        settings.SMTP_HOST, settings.SMTP_PORT = "127.0.0.1", server.port
        yield server


@pytest.fixture(autouse=True)
def scaled(settings: Any) -> dict[str, str]:
    """Divide this process's durations by the factor; returns the same for the environment of others."""
    for name, seconds in SCALED.items():
        setattr(settings, name, seconds)
    return {name: str(seconds) for name, seconds in SCALED.items()}


@pytest.fixture(autouse=True)
def watched_moves(transactional_db: None) -> Iterator[None]:
    """Let the database itself refuse every move of a copy that the table of allowed moves does not have."""
    allowed = [f"{old}>{new}" for old, moves in Delivery.MOVES.items() for new in moves]
    with connection.cursor() as cursor:
        cursor.execute(UNWATCH)
        cursor.execute(sql.SQL(WATCH_MOVES).format(allowed=sql.Literal(allowed)))
    yield
    with connection.cursor() as cursor:
        cursor.execute(UNWATCH)


def is_through(issue: Issue) -> bool:
    """Tell whether the issue has come to an end, with or without unknown copies."""
    issue.refresh_from_db()
    return issue.state not in (Issue.State.SCHEDULED, Issue.State.FROZEN, Issue.State.SENDING)


AUTHOR = "author@example.org"  # of the fixture `publication`


def logged(relay: SmtpServer) -> Counter[str]:
    """Count what the server itself wrote down, a line a copy; what the author was told meanwhile is none."""
    assert relay.log is not None
    taken = relay.log.read_text().split() if relay.log.exists() else []
    return Counter(address for address in taken if address != AUTHOR)


def assert_promise(issue: Issue, relay: SmtpServer, *, unknown_at_most: int) -> None:
    """Hold the ledger against the server's own: nobody twice, nobody lost, and the equation comes out (I1, I2)."""
    issue.refresh_from_db()
    counts, taken = issue.counts(), logged(relay)
    accepted = set(issue.deliveries.filter(state=State.ACCEPTED).values_list("address", flat=True))
    unknown = set(issue.deliveries.unknown().values_list("address", flat=True))
    print(f"\n{counts}; the server took {len(taken)} recipients, {max(taken.values(), default=0)} time(s) each")
    assert not [address for address, times in taken.items() if times > 1], "duplicated"
    assert accepted <= set(taken), "shown as sent, but the server has never had it"
    assert set(taken) <= accepted | unknown, "taken by the server, but neither sent nor unknown"
    assert counts.open == 0
    assert counts.unknown <= unknown_at_most
    assert counts.audience == (issue.planned or 0) + (issue.excluded or 0) == issue.candidates

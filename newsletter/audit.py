"""Prove from the rows what is promised (I1 to I3): nobody planned twice, nobody forgotten, every equation comes out.

Each question is one statement over an issue's rows that counts what must not be there. Reads only.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from django.db import connection

from newsletter.models import Issue

# What must not be there, by name: the number of rows, and the smallest of their keys as an example.
QUESTIONS = {
    "an address planned twice": """
        SELECT count(*), min(id) FROM (SELECT min(id) AS id FROM newsletter_delivery WHERE issue_id = %(issue)s
         GROUP BY address_key HAVING count(*) > 1) twice""",
    "a reader planned twice": """
        SELECT count(*), min(id) FROM (SELECT min(id) AS id FROM newsletter_delivery WHERE issue_id = %(issue)s
         GROUP BY subscriber_id HAVING count(*) > 1) twice""",
    "a copy of a reader who is not there": """
        SELECT count(*), min(d.id) FROM newsletter_delivery d WHERE issue_id = %(issue)s
           AND NOT EXISTS (SELECT 1 FROM subscribers_subscriber s WHERE s.id = d.subscriber_id)""",
    "a copy of a reader who never confirmed": """
        SELECT count(*), min(d.id) FROM newsletter_delivery d JOIN subscribers_subscriber s ON s.id = d.subscriber_id
         WHERE d.issue_id = %(issue)s AND s.confirmed_at IS NULL AND s.status <> 'erased'""",
    "a reader who was active at freeze and has no copy": """
        SELECT count(*), min(s.id) FROM subscribers_subscriber s
         WHERE s.status = 'active' AND s.confirmed_at < %(prepared_at)s AND s.unsubscribed_at IS NULL
           AND s.frequency = %(frequency)s AND s.topics = '{}' AND NOT EXISTS (
               SELECT 1 FROM subscribers_consent c
                WHERE c.subscriber_id = s.id AND c.at > %(prepared_at)s
                  AND (c.kind = 'imported' OR jsonb_exists_any(c.detail, ARRAY['topics', 'frequency'])))
           AND NOT EXISTS (SELECT 1 FROM newsletter_delivery d
                            WHERE d.issue_id = %(issue)s AND d.subscriber_id = s.id)""",
    "a copy shown as sent that nobody took": """
        SELECT count(*), min(id) FROM newsletter_delivery WHERE issue_id = %(issue)s AND state = 'accepted'
           AND (accepted_at IS NULL OR (attempt = 0 AND phase <> 'reconciled'))""",
    "a copy left out without a reason": """
        SELECT count(*), min(id) FROM newsletter_delivery
         WHERE issue_id = %(issue)s AND state = 'skipped' AND reason = ''""",
    "a copy held under a lease that has ended": """
        SELECT count(*), min(d.id) FROM newsletter_delivery d LEFT JOIN newsletter_lease l ON l.id = d.lease_id
         WHERE d.issue_id = %(issue)s AND d.state IN ('claimed', 'handing_over')
           AND (l.id IS NULL OR l.ended_at IS NOT NULL)""",
    "a waiting copy that no claim can find": """
        SELECT count(*), min(d.id) FROM newsletter_delivery d JOIN newsletter_frontier f ON f.issue_id = d.issue_id
         WHERE d.issue_id = %(issue)s AND d.state IN ('pending', 'deferred') AND d.next_attempt_at IS NULL
           AND (d.fence > 0 OR d.subscriber_id <= f.subscriber_id)""",
}


@dataclass
class Audit:
    """What the rows of one issue say: its equation, and whatever contradicts the promise, in words."""

    issue: Issue
    equation: dict[str, int] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)

    @property
    def line(self) -> str:
        return (
            "{audience} = {sent} sent + {skipped} skipped + {failed} failed + {unknown} unknown + {open} open".format(
                **self.equation
            )
        )

    def as_dict(self) -> dict[str, Any]:
        return {
            "issue": self.issue.number,
            "state": self.issue.state,
            "equation": self.equation,
            "candidates": self.issue.candidates,
            "planned": self.issue.planned,
            "excluded": self.issue.excluded,
            "violations": self.violations,
        }


def audit(issue: Issue) -> Audit:
    """Ask every question about one frozen issue."""
    counts = issue.counts()
    found = Audit(issue, counts.as_dict())
    values = {"issue": issue.pk, "prepared_at": issue.prepared_at, "frequency": issue.frequency}
    for name, question in QUESTIONS.items():
        with connection.cursor() as cursor:
            cursor.execute(question, values)
            number, example = cursor.fetchone()
        if number:
            found.violations.append(f"{number} times {name} (such as row {example})")
    found.violations += _sums(issue, counts)
    return found


def _sums(issue: Issue, counts: Any) -> list[str]:
    """Hold the counts against what freeze wrote down, and the issue's state against both."""
    at_freeze = issue.deliveries.filter(at_freeze=True).count()
    expected = {
        "candidates are planned and excluded": issue.candidates == (issue.planned or 0) + (issue.excluded or 0),
        "the rows are the candidates": counts.audience == issue.candidates,
        "the excluded are the rows excluded at freeze": at_freeze == issue.excluded,
        "the terms add up": counts.audience
        == counts.sent + counts.skipped + counts.failed + counts.unknown + counts.open,
        "a completed issue has nothing open or unknown": not issue.state.startswith("completed")
        or not (counts.open or counts.unknown),
        "an issue completed without failures has none": issue.state != "completed" or not counts.failed,
        "an issue in review has nothing open": issue.state != "needs_review" or not counts.open,
        "a cancelled issue has nothing that waits": issue.state != "cancelled"
        or not issue.deliveries.waiting().exists(),
    }
    return [f"it does not hold that {rule}" for rule, holds in expected.items() if not holds]

"""Which installation may send: a copy of the database, restored somewhere else, sends nothing until it is told to.

Compared are what only the original has: the database cluster's identifier, the database in it, and INSTANCE_ID, which
is kept outside the dump. The first installation to send arms itself; `manage.py rearm` accepts a move.
"""

from __future__ import annotations

import hashlib

from django.conf import settings
from django.db import connection

from subscribers.models import Instance

LIVE = """
SELECT (SELECT system_identifier FROM pg_control_system())::text,
       (SELECT oid FROM pg_database WHERE datname = current_database())
"""


def installation() -> str:
    """Return INSTANCE_ID as the row keeps it: a hash, so that a dump does not give it away."""
    return hashlib.sha256(b"instance:" + settings.INSTANCE_ID.encode()).hexdigest()[:32]


def is_armed() -> bool:
    """Tell whether this installation may send; the first to ask arms itself."""
    armed = Instance.objects.filter(pk=1).first() or arm()
    return _told(armed) == _told(_live())


def why_not() -> str:
    """Say in words why this installation may not send; empty where it may."""
    if is_armed():
        return ""
    armed, live = Instance.objects.get(pk=1), _live()
    place = (
        "another installation (INSTANCE_ID differs)" if armed.installation != live.installation else "another database"
    )
    return (
        f"This database was last used for sending by {place}, so it looks like a copy and sends nothing. If the"
        " installation has moved here and the former one is switched off for good, run: manage.py rearm"
    )


def arm() -> Instance:
    """Arm this installation if none is; return the one that is."""
    Instance.objects.bulk_create([_live()], ignore_conflicts=True)
    return Instance.objects.get(pk=1)


def rearm() -> None:
    """Let this installation send from now on, and no other."""
    live = _live()
    Instance.objects.update_or_create(pk=1, defaults=_told(live))


def _live() -> Instance:
    with connection.cursor() as cursor:
        cursor.execute(LIVE)
        identifier, oid = cursor.fetchone()
    return Instance(pk=1, system_identifier=identifier, database_oid=oid, installation=installation())


def _told(row: Instance) -> dict[str, object]:
    return {
        "system_identifier": row.system_identifier,
        "database_oid": row.database_oid,
        "installation": row.installation,
    }

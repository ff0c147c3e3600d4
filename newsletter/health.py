"""Answer whether this installation can do its work, for container engines and monitors."""

import logging

from django.conf import settings
from django.db import Error, connection
from django.http import HttpRequest, JsonResponse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe
from kombu.exceptions import OperationalError

from newsletter.celery import app

logger = logging.getLogger(__name__)


@never_cache
@require_safe
def healthz(_request: HttpRequest) -> JsonResponse:
    """Answer 200 while the site can do its work, 503 when the database is away.

    The broker is named but does not decide: pages, sign-ups and unsubscribes go on without it, and the next sweep
    finds what its messages would have hinted at. A monitor that wants to know looks for `"broker": "ok"`.
    """
    database, broker = database_answers(), broker_answers()
    states = {"database": _word(database), "broker": _word(broker)}
    return JsonResponse(states, status=200 if database else 503)


def database_answers() -> bool:
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
    except Error as error:
        logger.error("the database does not answer: %s", error)
        return False
    return True


def broker_answers() -> bool:
    try:
        with app.connection_for_write(settings.CELERY_BROKER_URL) as broker:
            broker.ensure_connection(max_retries=1, interval_start=0, timeout=2)
    except OperationalError as error:
        logger.error("the broker does not answer: %s", error)
        return False
    return True


def _word(answers: bool) -> str:
    return "ok" if answers else "away"

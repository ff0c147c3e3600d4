"""Append to the audit log: who did what to what. The database lets no entry be changed or removed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from django.contrib.auth.base_user import AbstractBaseUser
from django.contrib.auth.models import AnonymousUser
from django.db import connection, models, transaction
from django.forms import ModelForm
from django.http import HttpRequest

from posts.models import AuditEntry

Actor = AbstractBaseUser | AnonymousUser | str
LONGEST = 300  # characters kept of a value


def note(act: str, subject: object = "", *, actor: Actor = "", **detail: Any) -> AuditEntry:
    """Append an entry, in the caller's transaction. Without an actor it says that Masthead did it by itself."""
    return AuditEntry.objects.create(
        act=act, subject=str(subject)[:250], actor=_name(actor), detail={key: _plain(detail[key]) for key in detail}
    )


@contextmanager
def acting(act: str, subject: object = "", *, actor: Actor, **detail: Any) -> Iterator[dict[str, Any]]:
    """Note what is done inside, in one transaction with it: neither is kept without the other.

    Yields the entry's detail, to be added to. An issue's moves meanwhile are the actor's: the database notes by
    itself only those that nobody made.
    """
    with transaction.atomic():
        _set_actor(_name(actor))
        yield detail
        if isinstance(subject, models.Model):
            subject.refresh_from_db()
        note(act, subject, actor=actor, **detail)
        _set_actor("")


class Noted:
    """Mixed into an admin: what is added, changed and deleted there by form is noted under the name `noted`."""

    noted = ""

    def log_addition(self, request: HttpRequest, obj: models.Model, message: Any) -> Any:
        note(f"{self.noted}.add", obj, actor=request.user)
        return super().log_addition(request, obj, message)  # type: ignore[misc]  # ModelAdmin's

    def log_change(self, request: HttpRequest, obj: models.Model, message: Any) -> Any:
        if message:  # empty where the form was saved as it was
            note(f"{self.noted}.change", obj, actor=request.user, what=message)
        return super().log_change(request, obj, message)  # type: ignore[misc]

    def log_deletions(self, request: HttpRequest, queryset: Iterable[models.Model]) -> Any:
        for obj in queryset:
            note(f"{self.noted}.delete", obj, actor=request.user)
        return super().log_deletions(request, queryset)  # type: ignore[misc]


def note_changes(act: str, form: ModelForm[Any], *, actor: Actor) -> None:
    """Note which fields a valid form changes, with what they were and what they become; nothing where none is."""
    fields = {name: [form.initial.get(name), form.cleaned_data.get(name)] for name in form.changed_data}
    if fields:
        note(act, form.instance, actor=actor, fields=fields)


def _set_actor(name: str) -> None:
    """Tell the database who acts, for the rest of this transaction."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT set_config('masthead.actor', %s, true)", [name])


def _name(actor: Actor) -> str:
    return actor if isinstance(actor, str) else actor.get_username()


def _plain(value: Any) -> Any:
    """Return a value as JSON can keep it, long texts cut."""
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, dict):
        return {str(key): _plain(value[key]) for key in value}
    if isinstance(value, list | tuple | set):
        return [_plain(item) for item in value]
    text = str(value).replace("\0", "")
    return text if len(text) <= LONGEST else text[:LONGEST] + " …"

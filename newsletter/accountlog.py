"""Notes in the audit log who came in, and what became of accounts, factors and permissions; loading it is enough."""

from __future__ import annotations

from typing import Any

from allauth.account.internal.flows.login import get_authentication_records, record_authentication
from allauth.core import context
from allauth.mfa import signals
from allauth.mfa.models import Authenticator
from django.contrib.auth.models import AbstractUser, Group, User
from django.contrib.auth.signals import user_logged_in
from django.db.models.signals import m2m_changed, pre_delete, pre_save
from django.dispatch import receiver
from django.http import HttpRequest

from newsletter.accounts import FACTORS, network
from posts import auditlog


def _actor() -> Any:
    """Return who is signed in to the request under way; where there is none a command is at work."""
    if context.request is None:
        return "manage.py"
    user = getattr(context.request, "user", None)
    return user if user is not None and user.is_authenticated else ""


@receiver(user_logged_in)
def note_sign_in(request: HttpRequest, user: AbstractUser, **_kwargs: Any) -> None:
    how = [record.get("type", record["method"]) for record in get_authentication_records(request, user)]
    auditlog.note("account.sign_in", user, actor=user, how=how, network=network(request))


@receiver(signals.authenticator_added)
def note_factor(request: HttpRequest, user: AbstractUser, authenticator: Authenticator, **_kwargs: Any) -> None:
    """Whoever sets a factor up has just shown it."""
    auditlog.note("account.factor_added", user, actor=user, factor=authenticator.type)
    if authenticator.type in FACTORS:
        record_authentication(request, user, "mfa", id=authenticator.pk, type=authenticator.type)


@receiver(signals.authenticator_removed)
def note_factor_removed(user: AbstractUser, authenticator: Authenticator, **_kwargs: Any) -> None:
    auditlog.note("account.factor_removed", user, actor=user, factor=authenticator.type)


@receiver(signals.authenticator_reset)
def note_new_codes(user: AbstractUser, authenticator: Authenticator, **_kwargs: Any) -> None:
    auditlog.note("account.factor_renewed", user, actor=user, factor=authenticator.type)


@receiver(signals.authentication_failed)
def note_refused(request: HttpRequest, user: AbstractUser, authenticator: Authenticator, **_kwargs: Any) -> None:
    auditlog.note("account.refused", user, why=authenticator.type, network=network(request))


WATCHED = ("username", "email", "is_active", "is_staff", "is_superuser", "password")


@receiver(pre_save, sender=User)
def note_person(instance: User, update_fields: Any = None, raw: bool = False, **_kwargs: Any) -> None:
    """Note what changes of an account, the password's change without the password.

    A password alone is saved by itself only where Django hashes the same one better than before.
    """
    if raw or (update_fields and set(update_fields) <= {"last_login", "password"}):
        return
    before = User.objects.filter(pk=instance.pk).values(*WATCHED).first()
    if before is None:
        auditlog.note(
            "person.add", instance, actor=_actor(), **{name: getattr(instance, name) for name in WATCHED[1:5]}
        )
        return
    fields = {
        name: [before[name], getattr(instance, name)] for name in WATCHED if before[name] != getattr(instance, name)
    }
    if "password" in fields:
        fields["password"] = ["…", "…"]
    if fields:
        auditlog.note("person.change", instance, actor=_actor(), fields=fields)


@receiver(pre_delete, sender=User)
@receiver(pre_delete, sender=Group)
def note_removed(sender: type[User | Group], instance: User | Group, **_kwargs: Any) -> None:
    auditlog.note(f"{'person' if sender is User else 'group'}.delete", instance, actor=_actor())


@receiver(m2m_changed, sender=User.groups.through)
@receiver(m2m_changed, sender=User.user_permissions.through)
@receiver(m2m_changed, sender=Group.permissions.through)
def note_permissions(instance: Any, action: str, model: Any, pk_set: set[int] | None, **_kwargs: Any) -> None:
    if action not in ("post_add", "post_remove", "pre_clear"):
        return
    what = [str(row) for row in model.objects.filter(pk__in=pk_set or [])]
    auditlog.note(f"permissions.{action.partition('_')[2]}", instance, actor=_actor(), what=what)

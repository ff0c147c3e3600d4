"""System mail: an outbox of rows owed, each rendered and handed to Django's e-mail API when it is due."""

from __future__ import annotations

import datetime as dt
import logging
import time
from email.utils import make_msgid
from typing import Any

import requests
from django.conf import settings
from django.core.mail import EmailMultiAlternatives
from django.db import transaction
from django.template.loader import render_to_string
from django.urls import reverse
from django.utils import timezone, translation
from django.utils.safestring import mark_safe

from posts import markdown
from posts.models import Publication
from subscribers import addresses, instance, links, testmode, throttling, tokens
from subscribers.models import MagicLink, Subscriber, SystemMail

logger = logging.getLogger(__name__)

MOST_ATTEMPTS = 8
SECONDS_AT_ONCE = 20.0  # behind a relay that hangs, the issues of a sweep would wait
# What tells the author that the relay is away must outlast that: it is tried each hour at the longest.
PATIENT = (SystemMail.Kind.ALERT, SystemMail.Kind.WEBHOOK)
FOR_THE_AUTHOR = (*PATIENT, SystemMail.Kind.NEW_READERS)
PATIENCE = dt.timedelta(days=7)
LONGEST_WAIT = dt.timedelta(hours=1)


def owe(
    kind: str, *, subscriber: Subscriber | None = None, address: str = "", context: dict[str, Any] | None = None
) -> SystemMail:
    """Put a mail into the outbox, in the caller's transaction; whoever commits may hint at it.

    It goes to the reader's address, unless another is named.
    """
    key = addresses.canonical(address) if address or subscriber is None else subscriber.key
    return SystemMail.objects.create(
        kind=kind, subscriber=subscriber, address=address, context=context or {}, mailbox=addresses.mailbox_hash(key)
    )


def owe_reminder(subscriber: Subscriber, *, after: dt.timedelta) -> None:
    """Owe a reader his one reminder, so long from now; while it has not gone, asking once more puts it off."""
    due_at, once = timezone.now() + after, f"reminder:{subscriber.pk}"
    mailbox = addresses.mailbox_hash(subscriber.key)
    reminder = SystemMail(
        kind=SystemMail.Kind.REMINDER, once=once, subscriber=subscriber, mailbox=mailbox, due_at=due_at
    )
    SystemMail.objects.bulk_create([reminder], ignore_conflicts=True)
    SystemMail.objects.filter(once=once, sent_at=None).update(due_at=due_at)


def owe_once(kind: str, *, once: str, address: str = "", context: dict[str, Any]) -> None:
    """Put a mail into the outbox unless one with the same `once` was ever owed."""
    mail = SystemMail(kind=kind, once=once, address=address, context=context)
    SystemMail.objects.bulk_create([mail], ignore_conflicts=True)


def send_all_due(limit: int, *, seconds: float = SECONDS_AT_ONCE) -> int:
    """Send up to `limit` mails that are due, and begin none after `seconds`; return how many went.

    A copy of the database sends none.
    """
    if not instance.is_armed():
        return 0
    until = time.monotonic() + seconds
    due = SystemMail.objects.due().order_by("due_at").values_list("pk", flat=True)[:limit]
    return sum(send_due(mail_id) for mail_id in list(due) if time.monotonic() < until)


def send_due(mail_id: int) -> bool:
    """Send one mail if it is still owed and nobody else is at it; False otherwise, or if it has to wait."""
    with transaction.atomic():
        due = SystemMail.objects.due().select_for_update(skip_locked=True, of=("self",))
        mail = due.select_related("subscriber").filter(pk=mail_id).first()
        if mail is None or not instance.is_armed():
            return False
        if _is_needless(mail):
            mail.delete()
            return False
        try:
            with transaction.atomic():
                _hand_over(mail)
        except Exception as error:  # whatever it is, the mails behind this one must go
            _put_off(mail, error)
            return False
        mail.sent_at = timezone.now()
        _part_with_address(mail)
        mail.save(update_fields=["sent_at", "address"])
        return True


def _is_needless(mail: SystemMail) -> bool:
    """Tell whether nobody waits any more for a reminder, or its mailbox has had as much as it may."""
    if mail.kind != SystemMail.Kind.REMINDER:
        return False
    reader = mail.subscriber
    if reader is None or reader.status != Subscriber.Status.PENDING or reader.suppressed:
        return True
    return not throttling.mailbox_allows(reader.key, mail.kind, beside=mail)


def _hand_over(mail: SystemMail) -> None:
    if mail.kind == SystemMail.Kind.WEBHOOK:
        answer = requests.post(settings.ALERT_WEBHOOK_URL, json={"id": mail.pk, **mail.context}, timeout=10)
        answer.raise_for_status()
    else:
        testmode.redirected(_message(mail)).send()


def _put_off(mail: SystemMail, error: Exception) -> None:
    """Wait a minute, then twice as long each time, until it is given up. The error is kept with the row."""
    now = timezone.now()
    mail.attempts += 1
    mail.error = f"{type(error).__name__}: {error}".replace("\0", "")[:1000]
    mail.due_at = now + _wait(mail)
    if _is_hopeless(mail, now):
        mail.failed_at = now
        _part_with_address(mail)
    mail.save(update_fields=["attempts", "error", "due_at", "failed_at", "address"])
    logger.warning("system mail %s not sent, attempt %s: %s", mail.pk, mail.attempts, type(error).__name__)


def _part_with_address(mail: SystemMail) -> None:
    """Keep nothing of an address that was not taken, once it was told so."""
    if mail.kind == SystemMail.Kind.DISPOSABLE:
        mail.address = ""


def forget_nobodys() -> None:
    """Delete the mails of nobody that no throttle counts any more: of readers who never confirmed or were not taken."""
    nobodys = SystemMail.objects.filter(subscriber=None).exclude(mailbox="")
    nobodys.filter(created_at__lt=timezone.now() - throttling.COUNTED).delete()


def _wait(mail: SystemMail) -> dt.timedelta:
    wait = dt.timedelta(minutes=2 ** (min(mail.attempts, MOST_ATTEMPTS) - 1))
    return min(wait, LONGEST_WAIT) if mail.kind in PATIENT else wait


def _is_hopeless(mail: SystemMail, now: dt.datetime) -> bool:
    if mail.kind in PATIENT:
        return now - mail.created_at >= PATIENCE
    return mail.attempts >= MOST_ATTEMPTS


def _message(mail: SystemMail) -> EmailMultiAlternatives:
    publication = Publication.current()
    context = {"publication": publication, "site_url": settings.SITE_URL, **_context(mail), **mail.context}
    folder = f"emails/{mail.kind}"
    # Alerts are for the author, whose language the admin's is.
    reader = mail.subscriber.language if mail.subscriber else ""
    language = settings.LANGUAGE_CODE if mail.kind in FOR_THE_AUTHOR else reader or publication.language
    with translation.override(language):
        subject = " ".join(render_to_string(f"{folder}/subject.txt", context).split())
        text = render_to_string(f"{folder}/body.txt", context).strip() + "\n"
        html = render_to_string(f"{folder}/body.html", context)
    domain = publication.sender_address.rpartition("@")[2]
    message = EmailMultiAlternatives(
        subject,
        text,
        _sender(publication),
        [mail.address or str(mail.subscriber)],
        reply_to=[publication.reply_to] if publication.reply_to else None,
        headers={"Auto-Submitted": "auto-generated", "Message-ID": make_msgid(idstring="system", domain=domain)},
    )
    message.attach_alternative(html, "text/html")
    return message


def _sender(publication: Publication) -> str:
    name = publication.sender.replace("\\", "").replace('"', "")
    return f'"{name}" <{publication.sender_address}>'


def _context(mail: SystemMail) -> dict[str, Any]:
    if mail.subscriber is None:
        return {}
    context: dict[str, Any] = {"subscriber": mail.subscriber}
    if mail.kind in (SystemMail.Kind.CONFIRM, SystemMail.Kind.REMINDER):
        asked_at = mail.subscriber.asked_at or mail.created_at
        context |= {"asked_at": asked_at, "good_until": asked_at + dt.timedelta(days=tokens.CONFIRM_DAYS)}
        context |= {"confirm_url": confirm_url(mail.subscriber), "never_url": never_url(mail.subscriber)}
    if mail.kind in (SystemMail.Kind.MAGIC_LINK, SystemMail.Kind.ALREADY):
        context |= {"link_url": _magic_url(mail), "minutes": MagicLink.MINUTES}
    if mail.kind == SystemMail.Kind.NEW_ADDRESS:
        url = _change_url(mail, MagicLink.Purpose.NEW_ADDRESS, links.LINK_LIFETIME)
        context |= {"link_url": url, "minutes": MagicLink.MINUTES}
    if mail.kind == SystemMail.Kind.OLD_ADDRESS:
        url = _change_url(mail, MagicLink.Purpose.OLD_ADDRESS, links.REVOKE_FOR)
        context |= {"link_url": url, "days": links.REVOKE_FOR.days}
    if mail.kind == SystemMail.Kind.WELCOME:
        context |= {"unsubscribe_url": settings.SITE_URL + unsubscribe_path(mail.subscriber), **_own_welcome()}
    return context


def _own_welcome() -> dict[str, Any]:
    """Return what the author wrote to new readers, in both dresses; empty where he wrote nothing."""
    text = Publication.current().welcome
    if not text.strip():
        return {}
    return {
        "welcome_html": mark_safe(markdown.render(text, target="email")),
        "welcome_text": markdown.render_text(text),
        "code_colors": markdown.CODE_COLORS,
    }


def welcome() -> EmailMultiAlternatives:
    """Return the welcome mail as a new reader would get it; nothing is sent."""
    return _message(SystemMail(kind=SystemMail.Kind.WELCOME, subscriber=Subscriber(address="reader@example.com")))


def confirm_url(subscriber: Subscriber) -> str:
    """Return the address that confirms; it dies when its reader leaves, and after seven days."""
    token = tokens.sign(subscriber.pk, subscriber.stamp, purpose=tokens.CONFIRM)
    return settings.SITE_URL + reverse("subscribers:confirm", args=[token])


def never_url(subscriber: Subscriber) -> str:
    token = tokens.sign(subscriber.pk, bytes(subscriber.address_hash).hex(), purpose=tokens.NEVER)
    return settings.SITE_URL + reverse("subscribers:never", args=[token])


def unsubscribe_path(subscriber: Subscriber) -> str:
    return reverse("subscribers:unsubscribe", args=[subscriber.unsubscribe_id])


def _magic_url(mail: SystemMail) -> str:
    """Make a one-time key; only the mail knows it, the row keeps its hash."""
    assert mail.subscriber is not None
    asked_from = mail.context.get("asked_from", "")
    token = links.new_link(mail.subscriber, MagicLink.Purpose.PREFERENCES, asked_from=asked_from)
    return settings.SITE_URL + reverse("subscribers:preferences_open", args=[token])


def _change_url(mail: SystemMail, purpose: str, lifetime: dt.timedelta) -> str:
    """Make a one-time key for the change of address that the mail is about."""
    assert mail.subscriber is not None
    given = {"asked_from": mail.context["asked_from"], "change": mail.context["change"]}
    token = links.new_link(mail.subscriber, purpose, lifetime, **given)
    return settings.SITE_URL + reverse(f"subscribers:{purpose}", args=[token])

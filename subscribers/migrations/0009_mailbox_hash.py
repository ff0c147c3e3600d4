"""Keep the keyed hash of a mailbox instead of the mailbox, where it still counts against a limit."""

import datetime as dt
from typing import Any

from django.db import migrations
from django.utils import timezone

from subscribers import addresses

COUNTED = dt.timedelta(days=30)


def hash_mailboxes(apps: Any, schema_editor: Any) -> None:
    mails = apps.get_model("subscribers", "SystemMail").objects.filter(mailbox__contains="@")
    mails.filter(created_at__lt=timezone.now() - COUNTED).update(mailbox="")
    for mailbox in mails.order_by().values_list("mailbox", flat=True).distinct().iterator():
        mails.filter(mailbox=mailbox).update(mailbox=addresses.mailbox_hash(mailbox))


class Migration(migrations.Migration):
    dependencies = [("subscribers", "0008_submissions")]
    operations = [migrations.RunPython(hash_mailboxes, migrations.RunPython.noop)]

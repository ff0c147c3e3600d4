"""Where the mailbox of an address is opened, known from its domain alone."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import quote


@dataclass(frozen=True)
class Mailbox:
    slug: str
    name: str
    address: str
    domains: frozenset[str]

    def opened(self, *, sender: str) -> str:
        """Return the address that opens it; where the provider can search by address, at the mail of `sender`."""
        return self.address.replace("{sender}", quote(sender, safe=""))


# Gmail's search looks in the spam folder, too.
_GMAIL = "https://mail.google.com/mail/u/0/#search/from%3A{sender}+in%3Aanywhere+newer_than%3A1d"
_TABLE = [
    ("gmail", "Gmail", _GMAIL, "gmail.com googlemail.com"),
    (
        "outlook",
        "Outlook",
        "https://outlook.live.com/mail/0/",
        "outlook.com outlook.de outlook.fr hotmail.com hotmail.co.uk hotmail.de hotmail.fr live.com live.co.uk live.de "
        "live.fr live.nl msn.com",
    ),
    (
        "yahoo",
        "Yahoo Mail",
        "https://mail.yahoo.com/",
        "yahoo.com yahoo.co.uk yahoo.de yahoo.fr yahoo.es yahoo.it yahoo.ca yahoo.in ymail.com rocketmail.com",
    ),
    ("aol", "AOL Mail", "https://mail.aol.com/", "aol.com"),
    ("icloud", "iCloud Mail", "https://www.icloud.com/mail/", "icloud.com me.com mac.com"),
    ("proton", "Proton Mail", "https://mail.proton.me/", "proton.me protonmail.com protonmail.ch pm.me"),
    ("fastmail", "Fastmail", "https://app.fastmail.com/", "fastmail.com fastmail.fm"),
    ("tuta", "Tuta", "https://app.tuta.com/", "tuta.com tuta.io tutanota.com tutanota.de tutamail.com"),
    ("hey", "HEY", "https://app.hey.com/", "hey.com"),
    ("zoho", "Zoho Mail", "https://mail.zoho.com/", "zoho.com zohomail.com zohomail.eu"),
    ("gmx", "GMX", "https://www.gmx.net/", "gmx.de gmx.net gmx.at gmx.ch"),
    ("gmx-com", "GMX", "https://www.gmx.com/", "gmx.com gmx.us gmx.co.uk"),
    ("web-de", "WEB.DE", "https://web.de/", "web.de"),
    ("t-online", "T-Online", "https://email.t-online.de/", "t-online.de magenta.de"),
    ("mailbox-org", "mailbox.org", "https://app.mailbox.org/", "mailbox.org"),
    ("posteo", "Posteo", "https://posteo.de/", "posteo.de posteo.net posteo.org"),
]
MAILBOXES = {slug: Mailbox(slug, name, address, frozenset(known.split())) for slug, name, address, known in _TABLE}
BY_DOMAIN = {domain: mailbox for mailbox in MAILBOXES.values() for domain in mailbox.domains}


def of(address: str) -> Mailbox | None:
    """Return the mailbox of an e-mail address, or None where its provider is not known."""
    return BY_DOMAIN.get(address.rpartition("@")[2].strip().lower())

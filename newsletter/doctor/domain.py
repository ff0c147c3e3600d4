"""What the doctor asks about the sending domain: what receivers look up before they believe a mail."""

from __future__ import annotations

import requests
from django.utils.translation import gettext as _

from newsletter.doctor.facts import Facts, Record, Said, fails, ok, unasked, warns
from newsletter.doctor.records import (
    MOST_LOOKUPS,
    Dmarc,
    Spf,
    are_aligned,
    dmarc_records,
    key_bits,
    organisation,
    spf_records,
    tags,
)
from subscribers import tokens
from subscribers.names import Address, Unasked, address

HTTP_SECONDS = (3, 6)  # to connect, and between two pieces of the answer
POLICIES = ("none", "quarantine", "reject")
# How well-known relays are named in SPF, by the end of the host that takes mail for them.
INCLUDES = {
    "amazonaws.com": "amazonses.com",
    "fastmail.com": "spf.messagingengine.com",
    "gmail.com": "_spf.google.com",
    "mailgun.org": "mailgun.org",
    "mailjet.com": "spf.mailjet.com",
    "office365.com": "spf.protection.outlook.com",
    "postmarkapp.com": "spf.mtasv.net",
    "sendgrid.net": "sendgrid.net",
}


# SPF


def spf(facts: Facts) -> Said:
    """Look whether the envelope's domain lets the relay send for it (RFC 7208)."""
    facts.the_sender()
    domain = facts.bounces
    records = spf_records(facts.names, domain)
    if not records:
        return _no_spf(facts, domain)
    if len(records) > 1:
        found = _("%(domain)s has %(count)d SPF records. Receivers then believe none: %(records)s")
        return fails(
            found % {"domain": domain, "count": len(records), "records": " | ".join(records)},
            _("Make one record of them: each “include:” and “ip4:” once, one “all” at the end."),
        )
    return _spf_found(facts, domain, records[0])


def _no_spf(facts: Facts, domain: str) -> Said:
    found = _("%(domain)s has no SPF record: nothing says who may send for it.") % {"domain": domain}
    record = Record(domain, "TXT", f"v=spf1 {_mechanism(facts)} ~all")
    if facts.by_api:
        return warns(found, _("A provider's API often uses an envelope of its own; ask it what to add."), record)
    to_do = _("Add the record; where your relay's provider tells you another “include:”, take that.")
    return fails(found, to_do, record)


def _mechanism(facts: Facts) -> str:
    """Return the term that lets the relay send."""
    for end, include in INCLUDES.items():
        if facts.relay == end or facts.relay.endswith(f".{end}"):
            return f"include:{include}"
    if not facts.relay_is_here:
        return f"a:{facts.relay}"
    try:
        found = facts.relay_addresses()
    except Unasked:
        return f"a:{facts.site_host}" if _is_name(facts.site_host) else f"ip4:{_('<the address of your relay>')}"
    return " ".join(f"ip{each.version}:{each}" for each in found)


def _is_name(host: str) -> bool:
    return "." in host and address(host) is None


def _spf_found(facts: Facts, domain: str, record: str) -> Said:
    spf, verdicts = _read(facts, domain)
    if spf.problems:
        found = _("The record of %(domain)s can't be read: %(problems)s. It says: %(record)s")
        problems = "; ".join(dict.fromkeys(spf.problems))
        return fails(found % {"domain": domain, "problems": problems, "record": record}, _("Mend the record."))
    if spf.lookups > MOST_LOOKUPS:
        found = _(
            "The record of %(domain)s takes %(count)d look-ups; after %(most)d receivers stop and believe nothing."
        )
        to_do = _("Take out the “include:” of those who no longer send for you.")
        return fails(found % {"domain": domain, "count": spf.lookups, "most": MOST_LOOKUPS}, to_do)
    if spf.ends in ("+", "?"):
        found = _("The record of %(domain)s lets the whole world send: %(record)s")
        return warns(found % {"domain": domain, "record": record}, _("End it with “~all” or “-all”."))
    return _spf_verdict(facts, record, spf, verdicts)


def _read(facts: Facts, domain: str) -> tuple[Spf, dict[str, str]]:
    """Read the record for each address of the relay; where none is known, only for what it is made of."""
    try:
        addresses = facts.relay_addresses()
    except Unasked:
        addresses = []
    verdicts: dict[str, str] = {}
    asked: list[Address | None] = [*addresses] or [None]
    for each in asked:
        spf = Spf(facts.names)
        verdict = spf.verdict(domain, each)
        if each:
            verdicts[str(each)] = verdict
    return spf, verdicts


def _spf_verdict(facts: Facts, record: str, spf: Spf, verdicts: dict[str, str]) -> Said:
    values = {"record": record, "relay": facts.relay, "addresses": ", ".join(verdicts)}
    refused = [each for each, verdict in verdicts.items() if verdict != "+"]
    if not verdicts:
        found = _("%(record)s. Which address the relay sends from can't be told from here.")
        return ok(found % values, _("Send yourself a test and look for “spf=pass” in its source."))
    if not refused:
        return ok(_("%(record)s. It lets %(relay)s (%(addresses)s) send.") % values)
    values["addresses"] = ", ".join(refused)
    if spf.includes and not facts.relay_is_here:
        found = _(
            "%(record)s. The addresses where %(relay)s takes mail (%(addresses)s) are not in it, which is usual: a "
            "provider sends from others."
        )
        return ok(found % values, _("Send yourself a test and look for “spf=pass” in its source."))
    found = _("%(record)s. It does not let %(relay)s (%(addresses)s) send.")
    return fails(found % values, _("Put this term before “all”: %(term)s") % {"term": _mechanism(facts)})


# DKIM


def dkim(facts: Facts) -> Said:
    """Look at the public key with which receivers check the relay's signatures (RFC 6376, 3.6.1)."""
    if not facts.selector:
        return unasked(_("The selector is not named."), _("Set DKIM_SELECTOR to have the record looked at."))
    name = dkim_name(facts)
    records = facts.names.texts(name)
    if not records:
        found = _("There is no record at %(name)s: no receiver can check a signature.") % {"name": name}
        record = Record(name, "TXT", "v=DKIM1; k=rsa; p=" + _("<the key that your relay shows you>"))
        return fails(found, _("Add the record, or set DKIM_SELECTOR to the selector that your relay uses."), record)
    if len(records) > 1:
        found = _("There are %(count)d records at %(name)s: which one a receiver takes is chance.")
        return fails(found % {"count": len(records), "name": name}, _("Leave only the one of the key in use."))
    return _key(name, tags(records[0]))


def dkim_name(facts: Facts) -> str:
    """Return where the key stands: DKIM_SELECTOR is a word of the sender's domain, or the record's whole name."""
    selector = facts.selector.rstrip(".").lower()
    return selector if "._domainkey." in selector else f"{selector}._domainkey.{facts.the_sender()}"


def _key(name: str, record: dict[str, str]) -> Said:
    bits, kind = key_bits(record), record.get("k", "rsa").lower()
    if record.get("v", "DKIM1") != "DKIM1" or "p" not in record or bits is None:
        return fails(_("What stands at %(name)s is no key.") % {"name": name}, _("Copy the record from your relay."))
    if not record["p"]:
        return fails(
            _("The key at %(name)s was taken back: it is empty.") % {"name": name},
            _("Copy the record from your relay."),
        )
    if kind != "rsa":
        found = _("The key at %(name)s is of the kind %(kind)s, which some large providers can't check.")
        return warns(found % {"name": name, "kind": kind}, _("Sign with an RSA key, too."))
    if "y" in record.get("t", "").split(":"):
        found = _("The key at %(name)s says that it is being tested (t=y): receivers may ignore it.")
        return warns(found % {"name": name}, _("Take “t=y” out of the record."))
    return _length(name, bits)


def _length(name: str, bits: int) -> Said:
    replace = _("Let your relay make a new key of 2048 bits, and put its record here.")
    values = {"name": name, "bits": bits}
    if bits < 1024:
        return fails(_("The key at %(name)s has about %(bits)d bits: receivers refuse it.") % values, replace)
    if bits < 2048:
        return warns(_("The key at %(name)s has about %(bits)d bits; 2048 are advised.") % values, replace)
    found = _("There is a key of about %(bits)d bits at %(name)s.")
    return ok(found % values, _("Only a mail shows whether your relay signs with it: look for “dkim=pass”."))


# DMARC


def dmarc(facts: Facts) -> Said:
    """Look at what the domain asks receivers to do with mail that fails SPF and DKIM (RFC 7489)."""
    sender = facts.the_sender()
    records = dmarc_records(facts.names, sender)
    if not records:
        name = f"_dmarc.{organisation(sender, records)}"
        found = _("%(domain)s has no DMARC record; large providers refuse bulk mail without one.")
        value = f"v=DMARC1; p=none; rua=mailto:dmarc@{sender}"
        to_do = _("Add the record; begin with p=none, read the reports for some weeks, then p=quarantine.")
        return fails(found % {"domain": sender}, to_do, Record(name, "TXT", value))
    return _policy(sender, records[0])


def _policy(sender: str, record: Dmarc) -> Said:
    policy = record.tags.get("p", "")
    if record.domain != sender:
        policy = record.tags.get("sp", policy)
    values = {"name": f"_dmarc.{record.domain}", "text": record.text, "policy": policy}
    if policy not in POLICIES:
        found = _("%(name)s says: %(text)s. Its policy is none that DMARC knows.")
        return fails(found % values, _("Write p=none, p=quarantine or p=reject right behind v=DMARC1."))
    if "mailto:" not in record.tags.get("rua", ""):
        found = _("%(name)s says: %(text)s. Nobody is told what fails.")
        better = Record(f"_dmarc.{record.domain}", "TXT", f"{record.text.rstrip('; ')}; rua=mailto:dmarc@{sender}")
        return warns(found % values, _("Replace it by this, with a mailbox that you read."), better)
    if policy == "none":
        found = _("%(name)s says: %(text)s. With p=none a forged mail is still delivered.")
        return ok(found % values, _("When the reports show only your own relay, change it to p=quarantine."))
    return ok(_("%(name)s says: %(text)s") % values)


def alignment(facts: Facts) -> Said:
    """Look whether SPF or DKIM speaks for the very domain that the reader sees (RFC 7489, 3.1)."""
    sender = facts.the_sender()
    records = dmarc_records(facts.names, sender)
    wanted = records[0].tags if records else {}
    top = organisation(sender, records)
    signer = dkim_name(facts).partition("._domainkey.")[2] if facts.selector else ""
    envelope = "" if facts.by_api else facts.bounces
    by_spf = bool(envelope) and are_aligned(sender, envelope, top, strict=wanted.get("aspf") == "s")
    by_dkim = bool(signer) and are_aligned(sender, signer, top, strict=wanted.get("adkim") == "s")
    words = _("Readers see %(sender)s, the envelope says %(envelope)s, the signature %(signer)s.")
    words %= {"sender": sender, "envelope": envelope or "?", "signer": signer or "?"}
    if by_dkim:
        return _aligned_by_signature(words, envelope, by_spf=by_spf)
    if by_spf and signer:
        return warns(words, _("Let your relay sign for the sender's domain: forwarded mail lives by its signature."))
    if by_spf:
        return ok(words, _("A forwarded mail lives by its signature: set DKIM_SELECTOR to have that looked at, too."))
    if not (envelope or signer):
        return unasked(words, _("Issues go through a provider's API: set DKIM_SELECTOR to have it looked at."))
    to_do = _(
        "Neither SPF nor DKIM speaks for the sender: use an envelope (BOUNCE_DOMAIN) or a signature of its domain."
    )
    return fails(words, to_do)


def _aligned_by_signature(words: str, envelope: str, *, by_spf: bool) -> Said:
    if by_spf:
        return ok(words)
    if envelope:
        return warns(words, _("Set BOUNCE_DOMAIN to a name below the sender's domain, so that SPF counts, too."))
    return ok(words, _("The envelope is the provider's: where you can, give it a name below your domain."))


# Mail to us, and names


def mail_to_sender(facts: Facts) -> Said:
    return _takes_mail(facts, facts.the_sender())


def mail_to_replies(facts: Facts) -> Said | None:
    """Look at the domain of Reply-To, where it is another."""
    return _takes_mail(facts, facts.replies) if facts.replies not in ("", facts.sender) else None


def mail_to_bounces(facts: Facts) -> Said | None:
    """Look at the domain that bounces come home to, where it is another."""
    return _takes_mail(facts, facts.bounces) if facts.bounces not in ("", facts.sender) else None


def _takes_mail(facts: Facts, domain: str) -> Said:
    hosts = facts.names.exchanges(domain)
    values = {"domain": domain, "hosts": ", ".join(hosts)}
    record = Record(domain, "MX", f"10 {_mail_host(facts, domain)}.")
    if hosts == ["."]:
        found = _("%(domain)s says that it takes no mail at all (a null MX).")
        return fails(found % values, _("Replace the record by one that names your mail server."), record)
    if not hosts and facts.names.addresses(domain):
        found = _("%(domain)s has no MX record, only an address; many servers would still try it.")
        return warns(found % values, _("Add the record, with the name of the server that takes its mail."), record)
    if not hosts:
        found = _("%(domain)s has no MX record: answers and bounces have nowhere to go, and some receivers refuse you.")
        return fails(found % values, _("Add the record, with the name of the server that takes its mail."), record)
    nowhere = [host for host in hosts if not facts.names.addresses(host)]
    if nowhere:
        values["nowhere"] = ", ".join(nowhere)
        found = _("%(domain)s sends its mail to %(hosts)s, but %(nowhere)s has no address.")
        return fails(found % values, _("Give the name an address (A, AAAA), or take it out of the MX records."))
    return ok(_("%(domain)s takes mail at %(hosts)s. Whether the mailbox is read only you know.") % values)


def _mail_host(facts: Facts, domain: str) -> str:
    """Return the server that takes the sender's mail, where there is one; else a name for one."""
    known = facts.names.exchanges(facts.sender) if facts.sender not in ("", domain) else []
    return next((host for host in known if host != "."), f"mail.{domain}")


def message_id(facts: Facts) -> Said:
    """Look whether the domain in each Message-ID, the sender's, is one that the world knows."""
    sender = facts.the_sender()
    if not facts.names.exists(sender):
        found = _("There is no %(domain)s, and each Message-ID ends in it: filters take that for a forgery.")
        to_do = _("Choose a sender below a domain of yours, on the page of the publication.")
        return fails(found % {"domain": sender}, to_do)
    return ok(_("Each Message-ID ends in %(domain)s, which exists.") % {"domain": sender})


def one_click(facts: Facts) -> Said:
    """Press the unsubscribe button as a mail program does (RFC 8058, 3.1), at an address that is no reader's."""
    for path in (f"/u/{tokens.probe_id()}/", f"/u/{tokens.probe_id()}"):
        said = _pressed(facts.site_url, path)
        if said:
            return said
    if not facts.site_url.startswith("https://"):
        found = _("%(url)s/u/ answers 200 at once, but over http: mail programs show the button for https only.")
        return warns(found % {"url": facts.site_url}, _("Put a certificate in front, and set SITE_URL to https://."))
    return ok(_("%(url)s/u/ answers a POST with 200 at once.") % {"url": facts.site_url})


def _pressed(site: str, path: str) -> Said | None:
    """Post to one address; return what is wrong with the answer."""
    values = {"url": site + "/u/"}
    try:
        with requests.post(
            site + path,
            data={"List-Unsubscribe": "One-Click"},
            allow_redirects=False,
            timeout=HTTP_SECONDS,
            stream=True,  # the status is all that counts
        ) as answer:
            values |= {"status": str(answer.status_code), "to": answer.headers.get("Location", "")}
    except requests.exceptions.SSLError as error:
        to_do = _("Mend the certificate: a mail program does not press on.")
        return fails(_("The certificate of %(url)s is not good: %(error)s") % {**values, "error": reason(error)}, to_do)
    except requests.RequestException as error:
        to_do = _(
            "Is the site up, and does this machine reach it by that name? Try the curl command of docs/going-live.md."
        )
        return unasked(_("%(url)s could not be reached: %(error)s") % {**values, "error": reason(error)}, to_do)
    if values["status"] == "200":
        return None
    if values["status"].startswith("3"):
        found = _("%(url)s answers with a redirect (%(status)s) to %(to)s: mail programs follow none.") % values
        return fails(found, _("Take it out of the proxy, or set SITE_URL to where it leads."))
    found = _("%(url)s answers a POST with %(status)s instead of 200: an unsubscribe is lost.") % values
    return fails(found, _("Something in front challenges or blocks it, or SITE_URL leads to another site."))


def reason(error: BaseException) -> str:
    """Return the innermost cause in an exception of requests, whose own words are a nest of class names."""
    while inner := error.__cause__ or error.__context__:
        error = inner
    return str(error) or type(error).__name__

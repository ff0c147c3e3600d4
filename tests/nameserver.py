"""A small DNS server on loopback: it answers from a table, says that a name is not there, fails, or keeps silent."""

from __future__ import annotations

import socket
import threading
from dataclasses import dataclass, field
from types import TracebackType

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.resolver
import dns.rrset

Zone = dict[tuple[str, str], list[str]]


@dataclass
class NameServer:
    """Use as a context manager; `zone` maps a name and a type to the records there, as a zone file writes them."""

    zone: Zone = field(default_factory=dict)
    failing: set[str] = field(default_factory=set)  # names for which it answers SERVFAIL
    silent: bool = False
    asked: list[tuple[str, str]] = field(default_factory=list)

    def __enter__(self) -> NameServer:
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as last:
            last.sendto(b"", ("127.0.0.1", self.port))
        self.thread.join(5)
        self.socket.close()

    @property
    def resolver(self) -> dns.resolver.Resolver:
        resolver = dns.resolver.Resolver(configure=False)
        resolver.nameservers, resolver.port = ["127.0.0.1"], self.port
        return resolver

    def serve(self) -> None:
        while True:
            data, client = self.socket.recvfrom(4096)
            if not data:
                return
            reply = self.reply(dns.message.from_wire(data))
            if not self.silent:
                self.socket.sendto(reply.to_wire(), client)

    def reply(self, query: dns.message.Message) -> dns.message.Message:
        reply, question = dns.message.make_response(query), query.question[0]
        reply.flags |= dns.flags.RA
        name = question.name.to_text(omit_final_dot=True).lower()
        kind = dns.rdatatype.to_text(question.rdtype)
        self.asked.append((name, kind))
        if name in self.failing:
            reply.set_rcode(dns.rcode.SERVFAIL)
        elif records := self.zone.get((name, kind)):
            reply.answer.append(dns.rrset.from_text(question.name, 60, "IN", kind, *records))
        elif not any(known == name or known.endswith(f".{name}") for known, _kind in self.zone):
            reply.set_rcode(dns.rcode.NXDOMAIN)
        return reply


def txt(*texts: str) -> list[str]:
    """Write texts as TXT records, in pieces that are short enough."""
    return [" ".join(f'"{text[at : at + 200]}"' for at in range(0, len(text), 200)) for text in texts]

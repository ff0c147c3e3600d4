"""What a Postfix log proves of a message, and what it does not: on invented lines, and on what a real Postfix wrote."""

import gzip
import os
import smtplib
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from newsletter.relaylog import LINE_BYTES, REMEMBERED, Finding, Verdict, open_log, read_postfix_log
from tests.postfix import MISSING, Postfix, available

ID = "<copy@news.example.com>"
EARLIEST = datetime(2026, 11, 24, 23, 0, tzinfo=UTC)
LATEST = datetime(2026, 11, 24, 23, 30, tzinfo=UTC)


def line(text: str, *, at: str = "23:10:00", by: str = "cleanup", pid: int = 9, tag: str = "postfix") -> bytes:
    return f"2026-11-24T{at}.123456+00:00 relay {tag}/{by}[{pid}]: {text}\n".encode()


def traditional(text: str, *, at: str, by: str = "smtpd") -> bytes:
    return f"{at} relay postfix/{by}[7]: {text}\n".encode()


def client(queue_id: str = "AB12CD34EF", *, at: str = "23:10:00", pid: int = 7) -> bytes:
    return line(f"{queue_id}: client=localhost[127.0.0.1]", at=at, by="smtpd", pid=pid)


def named(queue_id: str = "AB12CD34EF", message_id: str = ID) -> bytes:
    return line(f"{queue_id}: message-id={message_id}")


def active(queue_id: str = "AB12CD34EF") -> bytes:
    return line(f"{queue_id}: from=<b+x@news.example.com>, size=400, nrcpt=1 (queue active)", by="qmgr", pid=3)


def cut_off(pid: int = 7) -> bytes:
    return line("lost connection after DATA (51 bytes) from localhost[127.0.0.1]", by="smtpd", pid=pid)


BEFORE = line("0000000001: message-id=<other@example.com>", at="22:59:59")
AFTER = line("disconnect from localhost[127.0.0.1]", at="23:30:01", by="smtpd")


def read(
    *lines: bytes, earliest: datetime = EARLIEST, latest: datetime = LATEST, zone: ZoneInfo | None = None
) -> Finding:
    return read_postfix_log(lines, wanted={ID: (earliest, latest)}, zone=zone)[ID]


def verdict(*lines: bytes) -> Verdict:
    return read(BEFORE, *lines, AFTER).verdict


def test_a_message_that_qmgr_has_was_taken() -> None:
    finding = read(client(), named(), active())
    assert finding.verdict is Verdict.TAKEN
    assert ID in finding.evidence
    assert "queue active" in finding.evidence


def test_a_name_alone_proves_nothing() -> None:
    assert verdict(client(), named()) is Verdict.UNKNOWN


def test_what_a_log_of_the_whole_span_does_not_name_was_not_taken() -> None:
    finding = read(BEFORE, AFTER)
    assert finding.verdict is Verdict.NOT_TAKEN
    assert "22:59:59" in finding.evidence
    assert "23:30:01" in finding.evidence


LOSSES = (
    "relay systemd-journald[200]: Suppressed 48210 messages from system-postfix.slice",
    "relay rsyslogd: imjournal: 12000 messages lost due to rate-limiting (20000 allowed within 600 seconds)",
    "relay rsyslogd[5]: imuxsock[pid 7]: begin to drop messages due to rate-limiting",
)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("at", ["2026-11-24T23:10:00.5+00:00 ", "2026-11-24T23:40:00+00:00 ", "Nov 24 23:59:60 ", ""])
def test_a_log_that_lost_lines_of_the_span_or_nobody_knows_when_proves_no_absence(loss: str, at: str) -> None:
    assert verdict(f"{at}{loss}\n".encode()) is Verdict.UNKNOWN
    assert verdict(client(), named(), f"{at}{loss}\n".encode(), active()) is Verdict.TAKEN


@pytest.mark.parametrize("at", ["2026-11-24T22:30:00+00:00 ", "2026-11-25T02:00:00+00:00 "])
def test_lines_lost_at_another_time_take_nothing_from_the_proof(at: str) -> None:
    assert verdict(*(f"{at}{loss}\n".encode() for loss in LOSSES)) is Verdict.NOT_TAKEN


def test_a_limit_that_postfix_speaks_of_is_no_hole() -> None:
    assert verdict(line("0A0A0A0A0A: 450 4.7.1 you are rate-limited", by="smtp")) is Verdict.NOT_TAKEN


def test_a_message_cut_off_before_its_dot_was_not_taken() -> None:
    finding = read(BEFORE, client(), named(), cut_off(), AFTER)
    assert finding.verdict is Verdict.NOT_TAKEN
    assert "lost connection" in finding.evidence


def test_the_name_may_be_logged_after_the_cut_and_after_the_next_client() -> None:
    assert verdict(client(), cut_off(), client("EEEEEEEEEE"), named()) is Verdict.NOT_TAKEN


def test_the_cut_of_another_session_says_nothing_of_ours() -> None:
    assert verdict(client(pid=7), client("EEEEEEEEEE", pid=8), named(), cut_off(pid=8)) is Verdict.UNKNOWN


def test_a_refused_data_command_after_ours_is_no_cut() -> None:
    lost = line("lost connection after DATA from localhost[127.0.0.1]", by="smtpd", pid=7)
    assert verdict(client(), named(), lost) is Verdict.UNKNOWN


@pytest.mark.parametrize(
    "refusal",
    [
        "milter-reject: END-OF-MESSAGE from localhost[127.0.0.1]: 5.7.1 no",
        "reject: END-OF-MESSAGE from localhost[127.0.0.1]: 554 5.7.1 no",
        "reject: header X-Refuse: yes from localhost[127.0.0.1]; from=<b@example.com>: 5.7.1 no",
        "reject: body this line from localhost[127.0.0.1]; from=<b@example.com>: 5.7.1 no",
    ],
)
def test_a_message_refused_at_its_end_was_not_taken(refusal: str) -> None:
    assert verdict(client(), named(), line(f"AB12CD34EF: {refusal}")) is Verdict.NOT_TAKEN


def test_another_recipients_refusal_says_nothing_of_the_message() -> None:
    refusal = line("AB12CD34EF: reject: RCPT from localhost[127.0.0.1]: 550 5.1.1 no", by="smtpd", pid=7)
    assert verdict(client(), refusal, named()) is Verdict.UNKNOWN


@pytest.mark.parametrize(
    "what", ["hold: header X: y from", "discard: header X: y from", "milter-hold: END-OF-MESSAGE from"]
)
def test_a_message_held_or_discarded_is_unknown(what: str) -> None:
    assert verdict(client(), named(), line(f"AB12CD34EF: {what} localhost[127.0.0.1]")) is Verdict.UNKNOWN


def test_a_second_try_that_was_taken_wins_over_a_first_that_was_cut_off() -> None:
    second = "CCCCCCCCCC"
    assert verdict(client(), named(), cut_off(), client(second), named(second), active(second)) is Verdict.TAKEN


def test_a_second_try_without_an_end_keeps_the_message_unknown() -> None:
    assert verdict(client(), named(), cut_off(), client("CCCCCCCCCC"), named("CCCCCCCCCC")) is Verdict.UNKNOWN


def test_a_queue_id_used_again_belongs_to_the_later_message() -> None:
    other = named(message_id="<other@example.com>")
    assert verdict(client(), named(), cut_off(), client(), other, active()) is Verdict.NOT_TAKEN
    assert verdict(client(), named(), client(), active()) is Verdict.UNKNOWN
    assert verdict(client(), other, active(), client(), named(), active()) is Verdict.TAKEN


def test_a_queue_id_of_another_host_is_another() -> None:
    assert verdict(client(), named(), active().replace(b" relay ", b" relay2 ")) is Verdict.UNKNOWN


@pytest.mark.parametrize("queue_id", ["3F1A2", "C614720C212", "4dQyGt0wwVz9vNZ", "4XyBzz3N1jz1Yv2Qk"])
def test_queue_ids_are_read_short_and_long(queue_id: str) -> None:
    assert verdict(client(queue_id), named(queue_id), active(queue_id)) is Verdict.TAKEN
    assert verdict(client(queue_id), named(queue_id), active(queue_id.swapcase() + "0")) is Verdict.UNKNOWN


@pytest.mark.parametrize("tag", ["postfix", "postfix/submission", "postfix-out", "mail/out/25"])
def test_the_tag_may_have_any_name(tag: str) -> None:
    name = line(f"AB12CD34EF: message-id={ID}", tag=tag)
    taken = line("AB12CD34EF: from=<>, size=1, nrcpt=1 (queue active)", by="qmgr", tag=tag)
    assert verdict(name, taken) is Verdict.TAKEN


@pytest.mark.parametrize("name", [f" {ID} ", f"{ID} (comment)", f"? {ID}", f"{ID}\r"])
def test_an_odd_name_line_is_read(name: str) -> None:
    assert verdict(named(message_id=name), active()) is Verdict.TAKEN


@pytest.mark.parametrize(
    "name", ["", "<>", "<copy@news.example.com", "<COPY@news.example.com>", f"<x{ID[1:]}", "<>>>>"]
)
def test_another_name_is_another_message(name: str) -> None:
    assert verdict(named(message_id=name), active()) is Verdict.NOT_TAKEN


def test_only_the_process_itself_is_believed() -> None:
    forged = line(f"warning: header Subject: cleanup[9]: AB12CD34EF: message-id={ID}")
    assert verdict(forged, active()) is Verdict.NOT_TAKEN
    assert verdict(named(), line("AB12CD34EF: from=<(queue active)>, x (queue active)", by="smtp")) is Verdict.UNKNOWN
    resent = line(f"AB12CD34EF: resent-message-id={ID}")
    assert verdict(resent, active()) is Verdict.NOT_TAKEN


@pytest.mark.parametrize("lines", [(), (BEFORE,), (AFTER,), (BEFORE, BEFORE), (b"garbage\n",)])
def test_a_log_that_does_not_cover_the_span_leaves_it_unknown(lines: tuple[bytes, ...]) -> None:
    assert read(*lines).verdict is Verdict.UNKNOWN


def test_a_log_of_warnings_only_proves_no_absence() -> None:
    warning = line("warning: hostname x does not resolve", at="22:00:00", by="smtpd")
    assert read(warning, AFTER).verdict is Verdict.UNKNOWN


def test_lines_of_other_programs_cover_nothing() -> None:
    other = b"2026-11-24T23:59:00.1+00:00 relay dovecot: imap-login: Login\n"
    assert read(BEFORE, other).verdict is Verdict.UNKNOWN
    assert read(BEFORE, AFTER, other).verdict is Verdict.NOT_TAKEN


def test_garbage_before_between_and_after_is_passed_over() -> None:
    garbage = [b"\0" * 9000 + b"\n", b"\xff\xfe message-id=\n", b"", b"Nov 99 99:99:99 x postfix/smtpd[1]: \n"]
    assert verdict(*garbage, client(), *garbage, named(), *garbage, active(), *garbage) is Verdict.TAKEN
    assert read(b"x", BEFORE, *garbage[:3], AFTER, *garbage[:3]).verdict is Verdict.NOT_TAKEN


def test_a_line_after_a_hole_of_nul_bytes_is_read() -> None:
    assert verdict(named(), b"\0" * 4096 + active()) is Verdict.TAKEN


def test_offsets_are_honoured() -> None:
    early = BEFORE.replace(b"22:59:59.123456+00:00", b"23:59:59+01:00")
    assert read(early, AFTER).verdict is Verdict.UNKNOWN  # may be the instant itself: seconds are rounded down
    assert read(early.replace(b"59:59+", b"59:58+"), AFTER).verdict is Verdict.NOT_TAKEN
    assert read(BEFORE, AFTER.replace(b"+00:00", b"+01:00")).verdict is Verdict.UNKNOWN


NAME = "AB12CD34EF: message-id=<other@example.com>"


def test_traditional_times_are_the_machines_own() -> None:
    berlin = ZoneInfo("Europe/Berlin")
    log = (traditional(NAME, at="Nov 24 23:59:58", by="cleanup"), traditional("x", at="Nov 25 00:30:01"))
    assert read(*log, zone=berlin).verdict is Verdict.NOT_TAKEN
    assert read(*log, zone=ZoneInfo("UTC")).verdict is Verdict.UNKNOWN


def test_the_year_of_a_traditional_time_follows_from_the_span() -> None:
    new_year = datetime(2027, 1, 1, tzinfo=UTC)
    span = {"earliest": new_year - timedelta(minutes=1), "latest": new_year + timedelta(minutes=1)}
    log = (traditional(NAME, at="Dec 31 23:58:00", by="cleanup"), traditional("x", at="Jan  1 00:02:00"))
    assert read(*log, **span, zone=ZoneInfo("UTC")).verdict is Verdict.NOT_TAKEN
    assert read(*reversed(log), **span, zone=ZoneInfo("UTC")).verdict is Verdict.UNKNOWN


def test_a_log_that_ended_months_ago_does_not_cover_today() -> None:
    log = (traditional(NAME, at="Sep  3 10:00:00", by="cleanup"), traditional("x", at="Mar 10 10:00:00"))
    assert read(*log).verdict is Verdict.UNKNOWN


def test_a_leap_day_is_no_error() -> None:
    log = (traditional(NAME, at="Feb 29 10:00:00", by="cleanup"), AFTER)
    assert read(*log).verdict is Verdict.UNKNOWN
    leap = datetime(2028, 2, 29, 12, tzinfo=UTC)
    log = (traditional(NAME, at="Feb 29 10:00:00", by="cleanup"), traditional("x", at="Feb 29 14:00:00"))
    assert read(*log, earliest=leap, latest=leap, zone=ZoneInfo("UTC")).verdict is Verdict.NOT_TAKEN


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        ("Oct 25 02:10:00", "Oct 25 03:20:00", Verdict.UNKNOWN),  # 02:10 may be the second one, at 01:10 UTC
        ("Oct 25 01:50:00", "Oct 25 02:50:00", Verdict.UNKNOWN),  # 02:50 may be the first one, at 00:50 UTC
        ("Oct 25 01:50:00", "Oct 25 03:20:00", Verdict.NOT_TAKEN),
    ],
)
def test_the_hour_that_comes_twice_counts_against_us(start: str, end: str, expected: Verdict) -> None:
    berlin = ZoneInfo("Europe/Berlin")
    instant = datetime(2026, 10, 25, 1, 0, tzinfo=UTC)
    log = (traditional(NAME, at=start, by="cleanup"), traditional("x", at=end))
    assert read(*log, earliest=instant, latest=instant, zone=berlin).verdict is expected


def test_each_message_is_judged_by_its_own_span() -> None:
    late = "<late@news.example.com>"
    wanted = {ID: (EARLIEST, LATEST), late: (EARLIEST, LATEST + timedelta(hours=1))}
    findings = read_postfix_log([BEFORE, AFTER], wanted=wanted)
    assert [findings[ID].verdict, findings[late].verdict] == [Verdict.NOT_TAKEN, Verdict.UNKNOWN]


def test_evidence_is_short() -> None:
    long = line(f"AB12CD34EF: message-id={ID} {'x' * 5000}")
    assert len(read(long, active()).evidence) <= 500
    assert len(read(long).evidence) <= 500


def test_sessions_are_forgotten_in_the_end_and_then_nothing_is_known() -> None:
    others = [client(f"{number:010X}", pid=number) for number in range(10, REMEMBERED + 10)]
    assert verdict(client(), *others[:-1], cut_off(), named()) is Verdict.NOT_TAKEN
    assert verdict(client(), *others, cut_off(), named()) is Verdict.UNKNOWN


PIECES = [BEFORE, AFTER, client(), named(), cut_off(), active(), b"\0", b"\n", b": message-id=", b"(queue active)"]


@given(st.lists(st.one_of(st.sampled_from(PIECES), st.binary(max_size=80)), max_size=30))
def test_any_bytes_are_read_without_error(pieces: list[bytes]) -> None:
    finding = read(*b"".join(pieces).splitlines(keepends=True))
    assert finding.verdict is not Verdict.TAKEN or active().strip() in b"".join(pieces)
    assert len(finding.evidence) <= 500


@given(st.lists(st.sampled_from([client(), client("EEEEEEEEEE"), cut_off(), client(pid=8)]), max_size=8))
def test_without_an_end_of_its_own_a_named_message_is_never_called_not_taken(noise: list[bytes]) -> None:
    assert verdict(*noise, client(), named(), *[other for other in noise if other != cut_off()]) is Verdict.UNKNOWN


def test_the_older_log_is_read_first(tmp_path: Path) -> None:
    log = tmp_path / "mail.log"
    log.write_bytes(b"3\n4\n")
    assert list(open_log(log)) == [b"3\n", b"4\n"]
    with gzip.open(tmp_path / "mail.log.1.gz", "wb") as file:
        file.write(b"0\n")
    assert list(open_log(log)) == [b"0\n", b"3\n", b"4\n"]
    (tmp_path / "mail.log.1").write_bytes(b"1\n2\n")
    assert list(open_log(log)) == [b"1\n", b"2\n", b"3\n", b"4\n"]


def test_a_line_still_being_written_is_left_out_and_a_long_one_is_cut(tmp_path: Path) -> None:
    log = tmp_path / "mail.log"
    log.write_bytes(b"1\n" + b"\0" * (LINE_BYTES + 5) + b"\n" + b"half")
    assert [len(piece) for piece in open_log(log)] == [2, LINE_BYTES, 6]


def test_a_log_that_is_not_there_or_damaged_is_an_error(tmp_path: Path) -> None:
    log = tmp_path / "mail.log"
    with pytest.raises(FileNotFoundError):
        list(open_log(log))
    log.write_bytes(b"3\n")
    whole = gzip.compress(b"0\n" * 1000)
    for damaged in (whole[:-9], b"no gzip", whole[:12] + b"\xff" * 20):
        (tmp_path / "mail.log.1.gz").write_bytes(damaged)
        with pytest.raises(OSError, match=r"damaged|[Nn]ot a gzipped|CRC"):
            list(open_log(log))


def test_a_rotation_while_the_logs_are_opened_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "mail.log"
    log.write_bytes(b"1\n")
    same = os.path.samestat

    def rotating(one: os.stat_result, two: os.stat_result) -> bool:
        monkeypatch.setattr(os.path, "samestat", same)
        log.rename(tmp_path / "mail.log.1")
        log.write_bytes(b"2\n")
        return same(one, log.stat())

    monkeypatch.setattr(os.path, "samestat", rotating)
    assert list(open_log(log)) == [b"1\n", b"2\n"]


# A real Postfix.

CHECKS = "regexp:{{/^X-Hold:/ HOLD}, {/^X-Refuse:/ REJECT}}"
OTHERWISE = {"enable_long_queue_ids": "yes", "syslog_name": "postfix-out", "header_checks": CHECKS}


def settle() -> None:
    """Let the second pass: the log's times are whole seconds, and a span that touches one is not covered."""
    time.sleep(1.1)


@pytest.fixture(scope="module", params=[{}, OTHERWISE], ids=["usual", "otherwise"])
def relay(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postfix]:
    if not available():
        (pytest.fail if os.environ.get("CI") else pytest.skip)(MISSING)
    with Postfix(tmp_path_factory.mktemp("relay"), request.param) as relay:
        relay_answers(relay)
        settle()
        yield relay


def relay_answers(relay: Postfix) -> None:
    with smtplib.SMTP("127.0.0.1", relay.port) as smtp:
        smtp.sendmail("b@news.example.com", "first@example.net", b"Message-ID: <first@example.com>\r\n\r\nHi\r\n")


def in_content(relay: Postfix, recipient: str, content: bytes) -> smtplib.SMTP:
    """Return a connection over which `content` was written after DATA: with its final dot or without."""
    smtp = smtplib.SMTP("127.0.0.1", relay.port)
    smtp.ehlo()
    smtp.mail("b@news.example.com")
    smtp.rcpt(recipient)
    assert smtp.docmd("DATA")[0] == 354
    smtp.send(content)
    return smtp


def content(name: str, header: str = "Subject: Monday", body: str = "Hello\r\n") -> bytes:
    return f"Message-ID: <{name}>\r\n{header}\r\n\r\n{body}".encode()


def found(relay: Postfix, name: str, earliest: datetime) -> Finding:
    latest = datetime.now(UTC)
    settle()
    relay.queued()
    return read_postfix_log(open_log(relay.log), wanted={f"<{name}>": (earliest, latest)})[f"<{name}>"]


def test_postfix_takes_a_message(relay: Postfix) -> None:
    began = datetime.now(UTC)
    smtp = in_content(relay, "alice@example.net", content("taken@news.example.com") + b".\r\n")
    assert smtp.getreply()[0] == 250
    smtp.quit()
    assert found(relay, "taken@news.example.com", began).verdict is Verdict.TAKEN
    assert relay.queued()["alice@example.net"] == 1


@pytest.mark.parametrize("size", [5, 50_000], ids=["small", "large"])
def test_postfix_does_not_take_a_message_whose_client_goes_before_the_dot(relay: Postfix, size: int) -> None:
    name, began = f"cut{size}@news.example.com", datetime.now(UTC)
    in_content(relay, "bob@example.net", content(name, body="Hello\r\n" * (size // 5))).close()
    finding = found(relay, name, began)
    assert finding.verdict is Verdict.NOT_TAKEN
    assert "lost connection after DATA" in finding.evidence
    assert name in relay.log.read_text()
    assert relay.queued()["bob@example.net"] == 0


def test_postfix_takes_a_message_whose_client_goes_before_the_reply(relay: Postfix) -> None:
    began = datetime.now(UTC)
    in_content(relay, "carol@example.net", content("dot@news.example.com") + b".\r\n").close()
    assert found(relay, "dot@news.example.com", began).verdict is Verdict.TAKEN
    assert relay.queued()["carol@example.net"] == 1


def test_postfix_never_heard_of_a_message_that_was_not_sent(relay: Postfix) -> None:
    assert found(relay, "never@news.example.com", datetime.now(UTC)).verdict is Verdict.NOT_TAKEN


@pytest.mark.parametrize("relay", [OTHERWISE], indirect=True)
@pytest.mark.parametrize(
    ("header", "code", "verdict"), [("X-Hold: x", 250, Verdict.UNKNOWN), ("X-Refuse: x", 550, Verdict.NOT_TAKEN)]
)
def test_postfix_holds_or_refuses_a_message(relay: Postfix, header: str, code: int, verdict: Verdict) -> None:
    name, began = f"{header[2:6].lower()}@news.example.com", datetime.now(UTC)
    smtp = in_content(relay, "dave@example.net", content(name, header) + b".\r\n")
    assert smtp.getreply()[0] == code
    smtp.quit()
    assert found(relay, name, began).verdict is verdict
    assert relay.queued()["dave@example.net"] == 0

"""How quickly readers get their pages: the production server driven by wrk, turn by turn with nginx serving files."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from django.conf import settings
from django.core.management.base import CommandError
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext, override_settings
from django.utils import timezone

from posts import related
from posts.models import DERIVED, Post, Publication, RelatedPosts, Tag
from subscribers.models import ReaderCount
from tests.benchmarks import database, debian, material, paint, senders
from tests.benchmarks.progress import say
from tests.benchmarks.senders import Fleet
from tests.benchmarks.sinks import Postfix, free_port, tail
from tests.factories import photograph
from tests.workers import database_url, redis_url

Figures = dict[str, Any]

POST = "post-1"
PAGES = {
    "profile": "/",
    "archive": "/posts/",
    "post": f"/posts/{POST}/",
    "search": "/search/?q=kernel+lighthouse",
    "feed": "/feed.xml",
}
CONNECTIONS = (1, 16, 64)
ENCODING = "br"  # what browsers ask for; nginx serves the same bytes from a file
SLOW_FACTOR = 8
TEXTS = 100  # different ones; the posts take them in turn
SECTION_WORDS = 94
RARE = 20  # one text in so many has a word that is looked for; the others' few words are in all of them
FULL = 5000  # posts, from which on the promises are judged
RATIO, QUERIES, SEARCH_MS, PAINT_MS, SEND_FACTOR = 0.20, 4, 100.0, 500.0, 2.0

WRK = ["wrk", "libluajit-5.1-2", "libluajit-5.1-common"]
NGINX = ["nginx", "nginx-common"]
# Each search is another, as readers' are: a name that one text in a hundred has, and a word that all have.
SEARCHES = """
local words = {{"{words}"}}
math.randomseed(tonumber(tostring(words):match("0x(%x+)"), 16))
function request()
    local one, other, more = math.random(#words), math.random(#words), math.random(#words)
    return wrk.format(nil, "/search/?q=" .. words[one] .. words[other] .. "+" .. words[more])
end
"""
REPORT = """
function done(summary, latency, requests)
    local errors = summary.errors
    io.write(string.format('{"requests": %d, "us": %d, "p50": %d, "p99": %d, "errors": %d}\\n', summary.requests,
        summary.duration, latency:percentile(50), latency:percentile(99),
        errors.status + errors.connect + errors.read + errors.write + errors.timeout))
end
"""
NGINX_CONF = """
daemon off; worker_processes 2; pid {home}/nginx.pid; error_log stderr error; {user}
events {{ worker_connections 1024; }}
http {{
    access_log off; sendfile on; tcp_nopush on; keepalive_requests 100000000; open_file_cache max=100;
    default_type text/html; client_body_temp_path {home}/body; proxy_temp_path {home}/proxy;
    fastcgi_temp_path {home}/fastcgi; uwsgi_temp_path {home}/uwsgi; scgi_temp_path {home}/scgi;
    server {{ listen 127.0.0.1:{port}; root {home}/files; }}
}}
"""


@dataclass(frozen=True)
class Plan:
    posts: int
    words: int
    seconds: int
    rounds: int
    readers: int
    connections: tuple[int, ...] = CONNECTIONS


@dataclass(frozen=True)
class Server:
    """A running server and what it is asked for."""

    base: str
    process: subprocess.Popen[bytes]

    def pss_mb(self) -> float:
        """Return the memory of the server's processes, what they share counted once (proc(5), smaps_rollup)."""
        texts = [Path(f"/proc/{pid}/smaps_rollup").read_text() for pid in _family(self.process.pid)]
        lines = [line.split() for text in texts for line in text.splitlines() if line.startswith("Pss:")]
        return sum(int(words[1]) for words in lines) / 1024


def measure(plan: Plan) -> Figures:
    """Run the benchmark; return what --json prints."""
    wrk = debian.program("wrk", *WRK)
    nginx = debian.program("nginx", *NGINX, folder="usr/sbin")
    with database.own() as durability, tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as ends:
        home = Path(folder)
        home.chmod(0o755)
        (home / "report.lua").write_text(REPORT)
        (home / "searches.lua").write_text(SEARCHES.format(words='", "'.join(material.WORDS)) + REPORT)
        say(f"inventing {plan.posts:,} posts of {plan.words:,} words and {plan.readers:,} readers")
        _fill(plan)
        with override_settings(MEDIA_ROOT=str(home / "media")):
            Post.objects.get(slug=POST).cover.save("cover.jpg", photograph())
        collect_static(home)
        cached = ends.enter_context(granian(home, "cached", PAGE_CACHE_MB="64"))
        uncached = ends.enter_context(granian(home, "uncached", PAGE_CACHE_MB="0"))
        sizes = _copy_pages(home, cached)
        files = ends.enter_context(_nginx(home, nginx))
        load = Load(wrk, home, plan.seconds)
        found = _take_turns(plan, load, cached, uncached, files)
        for name, page in found.items():
            _add_sizes(page, sizes[name], uncached.base + PAGES[name])
        say("the largest paint, the processor slowed down")
        painted = paint.measure(cached.base + PAGES["post"])
        pss = {"cached": round(cached.pss_mb(), 1), "uncached": round(uncached.pss_mb(), 1)}
        beside = _beside_a_send(plan, load, cached) if plan.readers else {}
    return {
        **durability, "posts": plan.posts, "words": plan.words, "seconds": plan.seconds, "rounds": plan.rounds,
        "encoding": ENCODING, **found, "paint": painted, "pss_mb": pss, "beside_send": beside,
    }  # fmt: skip


def errors(found: Figures) -> list[str]:
    """Return what is promised and not so; small sizes promise nothing."""
    if found["posts"] < FULL or "16" not in found["post"]["cached"]:
        return []
    wrong = []
    ratio, search = found["post"]["cached"]["16"]["ratio_nginx"], found["search"]["uncached"]["16"]["p99_ms"]
    if ratio < RATIO:
        wrong.append(f"A kept post page reaches {ratio} of nginx.")
    for name in PAGES:
        if (queries := found[name]["uncached"]["16"]["queries"]) > QUERIES:
            wrong.append(f"The page {name} asks {queries} queries.")
    if search > SEARCH_MS:
        wrong.append(f"One search in a hundred takes {search} ms or more.")
    if found["paint"] and (painted := found["paint"]["largest_paint_ms"]) > PAINT_MS:
        wrong.append(f"The largest paint of a post page comes after {painted} ms.")
    if found["beside_send"] and (factor := found["beside_send"]["factor"]) > SEND_FACTOR:
        wrong.append(f"A kept page takes {factor} times as long while an issue goes out.")
    return wrong


def show(found: Figures) -> str:
    """Return the figures for people."""
    lines = [f"{'':24}{'connections':>12}{'requests/s':>12}{'p50 ms':>10}{'p99 ms':>10}{'of nginx':>10}"]
    for name in PAGES:
        for kind in ("cached", "uncached"):
            for connections, one in found[name][kind].items():
                ratio = f"{one['ratio_nginx']:.3f}" if "ratio_nginx" in one else f"{one['queries']} q"
                lines.append(
                    f"{name + ', ' + kind:24}{connections:>12}{one['rps']:>12,.0f}{one['p50_ms']:>10.2f}"
                    f"{one['p99_ms']:>10.2f}{ratio:>10}"
                )
    lines.append(f"the post page in Chromium, with cover: {found['paint'] or 'not measured'}")
    lines.append(f"memory, MB: {found['pss_mb']}; beside a send: {found['beside_send'] or 'not measured'}")
    return "\n".join(lines)


def _fill(plan: Plan) -> None:
    publication = Publication.current()
    publication.name, publication.byline = "The Paper Lantern", "Ada Example"
    publication.tagline, publication.postal_address = "What machines keep to themselves", "1 Example Street"
    publication.set_up_at = timezone.now()
    publication.save()
    texts = [_text(number, plan.words) for number in range(min(TEXTS, plan.posts))]
    now, words = timezone.now(), random.Random(5)
    posts = Post.objects.bulk_create(
        (
            Post(
                title=f"{material.prose(words, 4)} {number}",
                slug=f"post-{number}",
                body=texts[number % len(texts)].body,
                status=Post.Status.PUBLISHED,
                published_at=now - number * timezone.timedelta(hours=17),
                **{name: getattr(texts[number % len(texts)], name) for name in DERIVED},
            )
            for number in range(plan.posts)
        ),
        batch_size=500,
    )
    tags = Tag.objects.bulk_create(Tag(name=word, slug=word) for word in material.WORDS[:12])
    Post.tags.through.objects.bulk_create(
        Post.tags.through(post=post, tag=tags[(index + more) % len(tags)])
        for index, post in enumerate(posts)
        for more in (0, 1)
    )
    keys = [post.pk for post in posts]
    RelatedPosts.objects.bulk_create(
        RelatedPosts(
            post=post, others=[keys[(place + step) % len(keys)] for step in range(7, 7 + related.KEPT)], at=now
        )
        for place, post in enumerate(posts)
    )
    if plan.readers:
        material.fill_readers(plan.readers)
    ReaderCount.refresh()
    database.execute("VACUUM (ANALYZE)")
    database.checkpoint()


def _text(number: int, words: int) -> Post:
    """Return a post with a rendered text of about so many words, prose and code."""
    source = random.Random(number)
    body = "".join(material.section(source) for _ in range(max(1, words // SECTION_WORDS)))
    names = [one + other for one in material.WORDS for other in material.WORDS][number::TEXTS]
    body += f"Names: {', '.join(names)}.\n\n"
    post = Post(body=body + ("A lighthouse.\n" if number % RARE == 0 else ""))
    post.derive()
    return post


def _environment(home: Path, **values: str) -> dict[str, str]:
    return {
        **os.environ,
        "DATABASE_URL": database_url(),
        "REDIS_URL": redis_url(),
        "SECRET_KEY": settings.SECRET_KEY,
        "PEPPER": settings.PEPPER,
        "INSTANCE_ID": settings.INSTANCE_ID,
        "SITE_URL": settings.SITE_URL,
        "ALLOWED_HOSTS": "127.0.0.1",
        "STATIC_ROOT": str(home / "static"),
        "MEDIA_ROOT": str(home / "media"),
        "LOG_LEVEL": "WARNING",
        **values,
    }


def collect_static(home: Path) -> None:
    command = [
        sys.executable,
        str(Path(settings.BASE_DIR) / "manage.py"),
        "collectstatic",
        "--noinput",
        "--skip-checks",
    ]
    subprocess.run(command, env=_environment(home), check=True, capture_output=True, timeout=120)


@contextlib.contextmanager
def granian(home: Path, name: str, **values: str) -> Iterator[Server]:
    """Run the command that the Dockerfile ends with, on a free port."""
    lines = (Path(settings.BASE_DIR) / "Dockerfile").read_text().splitlines()
    words = json.loads(next(line.removeprefix("CMD ") for line in lines if line.startswith("CMD ")))
    words[0] = str(Path(sys.executable).parent / words[0])
    port = free_port()
    values |= {"GRANIAN_HOST": "127.0.0.1", "GRANIAN_PORT": str(port), "PYTHONPATH": str(settings.BASE_DIR)}
    with _running(words, _environment(home, **values), home / f"{name}.log", port, PAGES["profile"]) as server:
        yield server


@contextlib.contextmanager
def _nginx(home: Path, nginx: debian.Program) -> Iterator[Server]:
    """Let nginx serve the files that `_copy_pages` made."""
    port = free_port()
    user = "user root;" if os.geteuid() == 0 else ""
    (home / "nginx.conf").write_text(NGINX_CONF.format(home=home, port=port, user=user))
    words = [str(nginx.path), "-p", str(home), "-c", str(home / "nginx.conf")]
    with _running(words, nginx.environment, home / "nginx.log", port, "/post") as server:
        yield server


@contextlib.contextmanager
def _running(words: list[str], env: dict[str, str], log: Path, port: int, path: str) -> Iterator[Server]:
    if setpriv := shutil.which("setpriv"):
        words = [setpriv, "--pdeathsig=TERM", *words]
    with log.open("wb+") as output:
        process = subprocess.Popen(
            words, env=env, cwd=log.parent, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            start_new_session=True,
        )  # fmt: skip
        server = Server(f"http://127.0.0.1:{port}", process)
        try:
            _await_answer(server, path, lambda: tail(output))
            yield server
        except CommandError as error:
            raise CommandError(f"{error} Its server said: {tail(output)}") from error
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


def _await_answer(server: Server, path: str, why: Any) -> None:
    until = time.monotonic() + 30
    while True:
        with contextlib.suppress(OSError):
            _fetch(server.base + path)
            return
        if server.process.poll() is not None or time.monotonic() > until:
            raise CommandError(f"A server did not start: {why()}")
        time.sleep(0.1)


def _fetch(url: str) -> bytes:
    request = urllib.request.Request(url, headers={"Accept-Encoding": ENCODING})
    with urllib.request.urlopen(request, timeout=30) as response:
        body: bytes = response.read()
    return body


def _copy_pages(home: Path, server: Server) -> dict[str, int]:
    """Write each page's bytes into a file for nginx; return their sizes."""
    (home / "files").mkdir()
    pages = {name: _fetch(server.base + address) for name, address in PAGES.items()}
    for name, body in pages.items():
        (home / "files" / name).write_bytes(body)
    return {name: len(body) for name, body in pages.items()}


@dataclass(frozen=True)
class Load:
    """wrk, and for how many seconds it asks."""

    wrk: debian.Program
    home: Path
    seconds: int

    def on(self, url: str, connections: int, script: str = "report") -> Figures:
        """Ask for one page, or as the script says, over so many connections; longer where too few answers come.

        Raises CommandError where an answer is not 2xx.
        """
        found = self._run(url, connections, script, self.seconds)
        if found["requests"] < 2 * connections:
            found = self._run(url, connections, script, SLOW_FACTOR * self.seconds)
        if found["errors"] or not found["requests"]:
            raise CommandError(f"{url} failed {found['errors']} of {found['requests']} times.")
        return {
            "rps": found["requests"] / found["us"] * 1e6, "p50_ms": found["p50"] / 1000, "p99_ms": found["p99"] / 1000
        }  # fmt: skip

    def _run(self, url: str, connections: int, script: str, seconds: int) -> Figures:
        words = [str(self.wrk.path), f"-t{min(connections, 2)}", f"-c{connections}", f"-d{seconds}s", "--timeout=30s",
                 "-H", f"Accept-Encoding: {ENCODING}", "-s", str(self.home / f"{script}.lua"), url]  # fmt: skip
        ended = subprocess.run(
            words, env=self.wrk.environment, capture_output=True, text=True, timeout=seconds + 60, check=False
        )
        report = ended.stdout.strip().splitlines()[-1:] or [""]
        if ended.returncode or not report[0].startswith("{"):
            raise CommandError(f"wrk failed: {ended.stdout}{ended.stderr}")
        found: Figures = json.loads(report[0])
        return found


def _take_turns(plan: Plan, load: Load, cached: Server, uncached: Server, files: Server) -> Figures:
    """Measure each page at each number of connections by turns: nginx's file, the kept page, the page made anew."""
    runs: dict[tuple[str, int], list[tuple[Figures, Figures, Figures]]] = {}
    for number in range(1, plan.rounds + 1):
        for name, address in PAGES.items():
            for connections in plan.connections:
                turn = (
                    load.on(f"{files.base}/{name}", connections),
                    load.on(cached.base + address, connections),
                    load.on(cached.base, connections, "searches")
                    if name == "search"
                    else load.on(uncached.base + address, connections),
                )
                runs.setdefault((name, connections), []).append(turn)
                say(
                    f"round {number}: {name} at {connections}: nginx {turn[0]['rps']:,.0f}, kept {turn[1]['rps']:,.0f} "
                    f"({turn[1]['rps'] / turn[0]['rps']:.3f}), made anew {turn[2]['rps']:,.0f} a second"
                )
    found: Figures = {name: {"cached": {}, "uncached": {}} for name in PAGES}
    for (name, connections), turns in runs.items():
        ratio = median(ours["rps"] / nginx["rps"] for nginx, ours, _anew in turns)
        kept = _middle([ours for _nginx, ours, _anew in turns])
        found[name]["cached"][str(connections)] = {**kept, "ratio_nginx": round(ratio, 3)}
        found[name]["uncached"][str(connections)] = _middle([anew for _nginx, _ours, anew in turns])
    return found


def _middle(runs: list[Figures]) -> Figures:
    return {name: round(median(run[name] for run in runs), 3) for name in runs[0]}


def _add_sizes(page: Figures, size: int, uncached: str) -> None:
    address = "/" + uncached.partition("//")[2].partition("/")[2]
    queries, made = _queries(address), len(_fetch(uncached))
    for one in page["cached"].values():
        one["bytes"] = size
    for one in page["uncached"].values():
        one |= {"bytes": made, "queries": queries}


def _queries(address: str) -> int:
    """Count what a page made anew asks the database."""
    client = Client()
    client.get(address, headers={"host": "127.0.0.1"})
    with CaptureQueriesContext(connection) as asked:
        response = client.get(address, headers={"host": "127.0.0.1"})
    if response.status_code != 200:
        raise CommandError(f"{address} answered {response.status_code}.")
    return len(asked)


def _beside_a_send(plan: Plan, load: Load, cached: Server) -> Figures:
    """Compare the kept post page's median while an issue goes to all readers with that before and after it."""
    say(f"the same while an issue goes to {plan.readers:,} readers")
    url = cached.base + PAGES["post"]
    issue = material.planned(Post.objects.get(slug=POST))
    alone = [load.on(url, 16)]
    during: list[Figures] = []
    with Postfix.find().sink(32) as sink, senders.started(issue, Fleet(2, 16), sink, seconds=900) as children:
        for child in children:
            child.await_ready()
        began = time.monotonic()
        for child in children:
            child.go()
        while not during or issue.has_due():
            during.append(load.on(url, 16))
        ended = [child.report()["finished"] for child in children]
    alone.append(load.on(url, 16))
    quiet, busy = (median(run["p50_ms"] for run in runs) for runs in (alone, during))
    return {
        "readers": plan.readers, "messages_per_s": round(plan.readers / (max(ended) - began)),
        "p50_ms_alone": round(quiet, 3), "p50_ms_beside": round(busy, 3), "factor": round(busy / quiet, 2),
        "rps_beside": round(median(run["rps"] for run in during)),
    }  # fmt: skip


def _family(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(member for child in children for member in _family(int(child)))]

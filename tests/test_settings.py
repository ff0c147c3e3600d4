"""The settings file, .env.example and README name the same variables, and production refuses half a set of them."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
READ = re.compile(r"""\benv\.\w+\(\s*"([A-Z][A-Z0-9_]+)\"""")
# Read by docker-compose.yml for the database's own container.
OF_COMPOSE = {"POSTGRES_PASSWORD"}


def text(name: str) -> str:
    return (ROOT / name).read_text()


def read_by_settings() -> set[str]:
    return set(READ.findall(text("newsletter/settings.py")))


def in_example() -> set[str]:
    return set(re.findall(r"^#?([A-Z][A-Z0-9_]+)=", text(".env.example"), re.MULTILINE))


def in_readme() -> set[str]:
    return set(re.findall(r"^\| `([A-Z][A-Z0-9_]+)` \|", text("README.md"), re.MULTILINE))


def test_settings_are_read_in_the_way_this_test_looks_for() -> None:
    assert {"DATABASE_URL", "SECRET_KEY", "SITE_URL", "LEASE_SECONDS", "ANYMAIL"} <= read_by_settings()
    assert "os.environ" not in text("newsletter/settings.py")


def test_every_variable_is_in_the_example_file() -> None:
    assert in_example() == read_by_settings() | OF_COMPOSE


def test_every_variable_is_in_the_table_of_the_readme() -> None:
    assert in_readme() == read_by_settings()


def test_the_example_file_holds_no_secret() -> None:
    filled = dict(re.findall(r"^([A-Z_]+)=(.*)$", text(".env.example"), re.MULTILINE))
    assert [filled[name] for name in ("SECRET_KEY", "PEPPER", "POSTGRES_PASSWORD", "SMTP_PASSWORD")] == [""] * 4


def production(**changes: str) -> dict[str, str]:
    """Return the environment of an installation whose settings are all there, but for `changes`."""
    return {
        "PATH": os.environ["PATH"],
        "HOME": os.environ.get("HOME", "/"),
        "DATABASE_URL": "postgres://nobody@127.0.0.1:1/none",
        "REDIS_URL": "redis://127.0.0.1:1/0",
        "SITE_URL": "https://news.example.org",
        "SECRET_KEY": "a long secret of many different letters: qwertzuiopasdfghjklyxcvbnm",
        "PEPPER": "another long secret: mnbvcxylkjhgfdsapoiuztrewq",
        "TRUST_PROXY": "True",
        "SMTP_HOST": "smtp.example.org",
        "SMTP_PORT": "587",
        "SMTP_USER": "masthead",
        "SMTP_PASSWORD": "secret",
        "SMTP_SECURITY": "starttls",
        **changes,
    }


def check(**changes: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "manage.py", "check", "--deploy", "--fail-level", "WARNING"]
    return subprocess.run(command, cwd=ROOT, env=production(**changes), capture_output=True, text=True, check=False)


def test_a_production_environment_passes_the_deploy_check() -> None:
    done = check()
    assert done.returncode == 0, done.stderr


def test_production_without_a_secret_key_does_not_start() -> None:
    done = check(SECRET_KEY="")
    assert done.returncode != 0
    assert "SECRET_KEY" in done.stderr


def test_production_without_a_pepper_is_told_what_it_is_for() -> None:
    done = check(PEPPER="")
    assert done.returncode != 0
    assert "PEPPER is not set" in done.stderr

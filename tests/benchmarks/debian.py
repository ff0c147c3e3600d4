"""Programs of Debian's packages that benchmarks need: installed, or fetched and unpacked without installing them."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from django.conf import settings
from django.core.management.base import CommandError


@dataclass(frozen=True)
class Program:
    """A program, and the folder of libraries that it needs besides the system's."""

    path: Path
    libraries: str = ""

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, **({"LD_LIBRARY_PATH": self.libraries} if self.libraries else {})}


def program(name: str, *packages: str, folder: str = "usr/bin", libraries: str = "usr/lib/x86_64-linux-gnu") -> Program:
    """Return the program `name`, fetching the packages where it is not installed. Raises CommandError."""
    for place in (*os.get_exec_path(), "/usr/sbin"):
        if (Path(place) / name).exists():
            return Program(Path(place) / name)
    unpacked = fetch(*packages)
    return Program(unpacked / folder / name, str(unpacked / libraries))


def fetch(*packages: str) -> Path:
    """Return the folder of Debian's packages, fetched and unpacked on first use. Raises CommandError."""
    target = settings.SERVERS.home / packages[0]
    if target.exists():
        return target
    draft = target.with_name(f"{packages[0]}-{os.getpid()}")
    draft.mkdir(mode=0o755, parents=True, exist_ok=True)
    unpack = 'for package in *.deb; do dpkg -x "$package" . && rm "$package" || exit 1; done'
    try:
        for command in (["apt-get", "download", *packages], ["sh", "-c", unpack]):
            subprocess.run(command, cwd=draft, check=True, capture_output=True, timeout=120)
    except (OSError, subprocess.SubprocessError) as error:
        shutil.rmtree(draft)
        raise CommandError(
            f"The benchmark needs Debian's package {packages[0]}. It is not installed, and can't be fetched: {error}"
        ) from error
    draft.rename(target)
    return target

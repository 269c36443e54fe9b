"""A PostgreSQL server of the test's own: a new cluster, on a free port and a Unix socket.

with PostgresServer() as server:
    await asyncpg.connect(host="127.0.0.1", port=server.port, user="postgres")
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

import trustme
from brokers import BrokerServer, no_preload

CA = trustme.CA()
PLACES = Path("/usr/lib/postgresql")  # Debian's: none of its programs is in PATH


def other_user() -> str | None:
    """The user that it runs as, if root starts it, which it refuses to serve."""
    if os.geteuid() != 0:
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"


class PostgresServer(BrokerServer):
    """Everybody on this machine may do anything in it, and what is in it is not kept.

    It is in a directory of its own: another user cannot come into pytest's.
    """

    program = "postgres"
    scheme = "postgresql"
    says_ready = "database system is ready to accept connections"
    ends_by = signal.SIGQUIT  # which ends connections at once, and leaves no shared memory

    def __init__(self) -> None:
        self.require()
        self.user = other_user()
        become = ("setpriv", f"--reuid={self.user}", "--clear-groups") if self.user else ()
        self._home = tempfile.TemporaryDirectory(prefix="pg-", dir="/tmp")
        super().__init__(Path(self._home.name), prefix=become)

    @classmethod
    def path(cls) -> str | None:
        places = sorted(PLACES.glob("*/bin"), key=lambda place: float(place.parent.name))
        found = map(str, reversed(places))
        return shutil.which(cls.program, path=os.pathsep.join([os.environ["PATH"], *found]))

    def arguments(self) -> list[str]:
        settings = {
            "listen_addresses": self.host,
            "port": self.port,
            "unix_socket_directories": self.directory,
            "ssl": "on",
            "ssl_cert_file": self.directory / "server.pem",
            "ssl_key_file": self.directory / "server.pem",
            "dynamic_shared_memory_type": "mmap",
            "fsync": "off",
        }
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        return ["-D", str(self.directory / "data"), *options]

    def __enter__(self) -> BrokerServer:
        pem = self.directory / "server.pem"
        CA.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(pem)
        pem.chmod(0o600)
        for place in self.directory, pem:
            if self.user:
                shutil.chown(place, self.user)
        initdb = Path(str(self.path())).resolve().with_name("initdb")
        words = "--username=postgres --auth=trust --no-sync --no-locale --encoding=UTF8"
        command = [*self.prefix, initdb, *words.split(), "--pgdata", self.directory / "data"]
        quiet = subprocess.DEVNULL
        subprocess.run(command, cwd=self.directory, env=no_preload(), check=True, stdout=quiet)
        return super().__enter__()

    def __exit__(self, *exc_info: object) -> None:
        super().__exit__(*exc_info)
        self._home.cleanup()

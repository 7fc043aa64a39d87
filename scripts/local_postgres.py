"""A private PostgreSQL for scripts that measure or disturb: on a socket in a directory of its own, as its own user."""

import contextlib
import glob
import os
import pwd
import signal
import subprocess
import time


def installed():
    """The directory with the newest PostgreSQL's programs, or None."""
    found = os.environ["PATH"].split(os.pathsep) + sorted(glob.glob("/usr/lib/postgresql/*/bin"))
    programs = ("initdb", "postgres", "pg_isready", "psql")
    return next((b for b in reversed(found) if all(os.path.exists(f"{b}/{p}") for p in programs)), None)


class Postgres:
    """A private server on a socket; may be killed and started again."""

    def __init__(self, directory, settings=()):
        self.bin = installed()
        assert self.bin, "PostgreSQL is not installed"
        self.directory, self.process = directory, None
        self.user, self.settings = None, [word for s in settings for word in ("-c", s)]
        if os.geteuid() == 0:
            names = {u.pw_name: u for u in pwd.getpwall()}
            self.user = names.get("postgres") or names["nobody"]
            os.chown(directory, self.user.pw_uid, self.user.pw_gid)
        if not os.path.exists(f"{directory}/data"):
            self.run("initdb", "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "-D",
                     f"{directory}/data")
        self.url = f"postgres://postgres@localhost/postgres?host={directory}"

    def ids(self):
        return {"user": self.user.pw_uid, "group": self.user.pw_gid} if self.user else {}

    def run(self, program, *arguments):
        done = subprocess.run([f"{self.bin}/{program}", *arguments], capture_output=True, text=True, cwd="/", **self.ids())
        assert done.returncode == 0, done.stderr
        return done.stdout

    def start(self):
        end = time.monotonic() + 60
        ready = [f"{self.bin}/pg_isready", "-q", "-h", str(self.directory)]
        self.launch()
        while subprocess.run(ready).returncode != 0:
            said = (self.directory / "log").read_text()[-2000:]
            assert time.monotonic() < end, said
            if self.process.poll() is not None:
                # Processes of a killed server end a moment after it and hold its memory until then.
                assert "is still in use" in said, said
                self.launch()
            time.sleep(0.1)

    def launch(self):
        with (self.directory / "log").open("a") as log:
            command = [f"{self.bin}/postgres", "-c", "listen_addresses=", "-c", "max_connections=200", *self.settings, "-k",
                       str(self.directory), "-D", f"{self.directory}/data"]
            self.process = subprocess.Popen(command, stdout=log, stderr=log, cwd="/", start_new_session=True, **self.ids())

    def kill(self):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def stop(self):
        """Ends the server with a checkpoint."""
        self.process.send_signal(signal.SIGINT)
        self.process.wait()

    def rows(self, sql):
        out = self.run("psql", "-h", str(self.directory), "-U", "postgres", "-AtF", "\t", "-c", sql, "postgres")
        return [line.split("\t") for line in out.splitlines()]

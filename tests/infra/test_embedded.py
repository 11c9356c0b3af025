"""Embedded mode with its real servers: what it starts, who may do what there, and that nothing of it stays behind."""

import asyncio
import contextlib
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import asyncpg
import nats
import pytest
from minio import Minio
from nats.aio.client import Client
from nats.js.api import PubAck
from nats.js.errors import APIError, NoStreamResponseError

from infra.embedded import Cluster, Servers
from infra.embedded.home import Home
from infra.embedded.process import can_disguise
from infra.embedded.programs import find_program
from infra.nats.provision import provision
from infra.nats.streams import definitions
from libs.config import Refused
from tests.kit.eventually import eventually
from tests.kit.servers import all_servers, fresh_home

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")

REPOSITORY = Path(__file__).parents[2]
GIB = 1024**3
SERVERS = ("nats", "postgres", "s3")

OWN = {
    "gateway": {
        "ev.t.user.registered.x",
        "ev.t.credit.granted.x",
        "ev.t.image.annotated.d.x",
        "ev.t.job.created.x",
        "sec.t.user.registered.x",
        "ask.predict.x",
        "proj.x",
        "rate.b.x.1",
    },
    "datasets": {"ev.t.preparation.started.x"},
    "training": {"ev.t.training.started.x", "tel.t.training.step.x", "work.gpu.x", "$JS.API.CONSUMER.MSG.NEXT.WORK.worker", "$JS.API.CONSUMER.INFO.TEL.x"},
    "export": {"ev.t.export.started.x"},
}
LAST = "nobody.may.write.this"
NOBODYS = {
    "ev.t.unknown.created.x",
    "feed.t.job.created.x",
    "_INBOX_gateway.x",
    "$JS.API.STREAM.CREATE.EV",
    "$JS.API.STREAM.UPDATE.EV",
    "$JS.API.STREAM.DELETE.EV",
    "$JS.API.STREAM.PURGE.EV",
    "$JS.API.STREAM.MSG.DELETE.EV",
    "$JS.API.STREAM.DELETE.WORK",
    "$JS.API.STREAM.PURGE.RATE",
}


# Streams and users


def test_the_streams_are_what_the_design_says(servers: Servers):
    assert asyncio.run(stream_configs(servers.nats_url("infra"))) == {
        "EV": {
            "subjects": ["ev.>", "sec.>"],
            "retention": "limits",
            "storage": "file",
            "discard": "new",
            "max_age": 0,
            "max_msgs": -1,
            "max_msgs_per_subject": -1,
            "max_consumers": 10_000,
            "num_replicas": 1,
            "duplicate_window": 120_000_000_000,
            "compression": "s2",
            "allow_atomic": True,
            "allow_direct": True,
            "deny_delete": True,
            "deny_purge": False,
            "republish": {"src": "ev.>", "dest": "feed.>"},
            "allow_rollup_hdrs": False,
            "allow_msg_ttl": False,
        },
        "TEL": {
            "subjects": ["tel.>"],
            "retention": "limits",
            "storage": "file",
            "persist_mode": "async",
            "discard": "old",
            "max_age": 86_400_000_000_000,
            "max_msgs": -1,
            "max_msgs_per_subject": 2_000,
            "max_consumers": -1,
            "num_replicas": 1,
            "duplicate_window": 120_000_000_000,
            "compression": "none",
            "allow_direct": True,
            "deny_delete": False,
            "deny_purge": False,
            "allow_rollup_hdrs": False,
            "allow_msg_ttl": False,
        },
        "WORK": {
            "subjects": ["work.>"],
            "retention": "workqueue",
            "storage": "file",
            "discard": "new",
            "discard_new_per_subject": True,
            "max_age": 0,
            "max_msgs": -1,
            "max_msgs_per_subject": 1,
            "max_consumers": -1,
            "num_replicas": 1,
            "duplicate_window": 120_000_000_000,
            "compression": "none",
            "allow_direct": False,
            "deny_delete": False,
            "deny_purge": False,
            "allow_rollup_hdrs": False,
            "allow_msg_ttl": False,
        },
        "RATE": {
            "subjects": ["rate.>"],
            "retention": "limits",
            "storage": "file",
            "persist_mode": "async",
            "discard": "old",
            "max_age": 3_720_000_000_000,
            "max_msgs": -1,
            "max_msgs_per_subject": 1,
            "max_consumers": -1,
            "num_replicas": 1,
            "duplicate_window": 120_000_000_000,
            "compression": "none",
            "allow_msg_counter": True,
            "allow_direct": False,
            "deny_delete": False,
            "deny_purge": False,
            "allow_rollup_hdrs": False,
            "allow_msg_ttl": False,
        },
    }


async def test_provisioning_twice_changes_nothing_and_heals_what_somebody_changed(servers: Servers):
    url = servers.nats_url("infra")

    await provision(url, max_bytes=GIB)
    assert await provision(url, max_bytes=GIB) == {"EV": "unchanged", "TEL": "unchanged", "WORK": "unchanged", "RATE": "unchanged"}

    async with connected(url) as client:
        spoilt = definitions(replicas=1, max_bytes=GIB)[0] | {"allow_atomic": False, "max_age": 3_600_000_000_000}
        await client.request("$JS.API.STREAM.UPDATE.EV", json.dumps(spoilt).encode())
    assert await provision(url, max_bytes=GIB) == {"EV": "updated", "TEL": "unchanged", "WORK": "unchanged", "RATE": "unchanged"}


@pytest.mark.parametrize("user", OWN)
async def test_a_service_may_write_its_own_facts_only(servers: Servers, user: str):
    wanted = NOBODYS.union(*OWN.values())
    denied: list[str] = []

    async with connected(servers.nats_url(user), user=user, denied=denied) as client:
        for subject in wanted:
            await client.publish(subject, b"{}")
        await all_refusals(client, denied)

    assert {subject for subject in wanted if any(f'"{subject.lower()}"' in error for error in denied)} == wanted - OWN[user]


async def test_a_service_reads_the_log_in_every_way_and_no_inbox_of_others(servers: Servers):
    await append(servers, "ev.t.job.created.read", user="gateway")
    denied: list[str] = []

    async with connected(servers.nats_url("export"), user="export", denied=denied) as client:
        log = client.jetstream(timeout=1)
        position = (await log.get_last_msg("EV", "ev.t.job.*.read", direct=True)).seq
        assert position
        assert (await log.get_msg("EV", position, direct=True)).subject == (await log.get_msg("EV", position)).subject == "ev.t.job.created.read"
        pulled = await (await log.pull_subscribe("ev.*.job.*.read", durable="export", stream="EV")).fetch(1, timeout=1)
        await pulled[0].ack_sync(timeout=1)
        ordered = await log.subscribe("ev.*.job.*.read", stream="EV", ordered_consumer=True)
        assert (await ordered.next_msg(timeout=1)).metadata.sequence.stream == position
        feed = await client.subscribe("feed.>")
        await all_refusals(client, denied)
        assert [error for error in denied if LAST not in error] == []

        await append(servers, "ev.t.job.created.fed", user="gateway")
        assert (await feed.next_msg(timeout=1)).subject == "feed.t.job.created.fed"

        await client.subscribe("_INBOX_gateway.>")
        await client.subscribe("ev.>")
        await all_refusals(client, denied)
        assert [error.split('"')[1] for error in denied if LAST not in error] == ["_inbox_gateway.>", "ev.>"]


async def test_a_question_is_answered_into_the_askers_inbox(servers: Servers):
    async with connected(servers.nats_url("training"), user="training") as training, connected(servers.nats_url("gateway"), user="gateway") as gateway:
        question = await training.subscribe("ask.hardware")
        await training.flush()
        asked = asyncio.create_task(gateway.request("ask.hardware", timeout=1))

        await (await question.next_msg(timeout=1)).respond(b"cpu")

        assert (await asked).data == b"cpu"


async def test_not_even_infra_deletes_a_fact(servers: Servers):
    await append(servers, "ev.t.job.created.x", user="infra")

    async with connected(servers.nats_url("infra")) as client:
        answer = json.loads((await client.request("$JS.API.STREAM.MSG.DELETE.EV", b'{"seq": 1}')).data)

    assert answer["error"]["err_code"] == 10057


@pytest.mark.parametrize(
    ("user", "reason"), [("infra:not", "no connection to the bus: nats: 'Authorization Violation'"), ("gateway:", "this needs the user `infra`")]
)
def test_operators_are_told_why_they_cannot_provision(servers: Servers, user: str, reason: str):
    url = servers.nats_url(user.removesuffix(":").split(":")[0]).replace("infra:", user)

    answer = subprocess.run(
        [sys.executable, "-m", "infra.nats.provision"],
        env={**os.environ, "TRAINYARD_NATS_URL": url},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )

    assert reason in refused(answer)


# Servers


async def test_data_survives_a_stop_and_kills(home: Path):
    with Servers(home) as servers:
        await put_something_everywhere(servers)
        for name in SERVERS:
            servers[name].kill()
            servers[name].start()
        assert await found_everywhere(servers)
        pids = dict(servers.home.pids)

    with Servers(home) as servers:
        assert await found_everywhere(servers)
        assert all(servers.home.pids[name] != pids[name] for name in SERVERS)


async def test_a_killed_database_starts_again_although_a_session_of_it_is_busy(home: Path):
    with Servers(home) as servers:
        connection = await asyncpg.connect(servers.database_url)
        busy = asyncio.create_task(connection.fetchval("SELECT count(*) FROM generate_series(1, 1000000000)"))
        await eventually(lambda: sessions(servers))

        servers["postgres"].kill()
        servers["postgres"].start()

        with pytest.raises(asyncpg.PostgresConnectionError):
            await busy
        connection.terminate()


def test_secrets_are_for_the_owner_alone_and_in_no_command_line(servers: Servers):
    assert (servers.home.path / "secrets.json").stat().st_mode & 0o777 == 0o600
    secrets = [
        servers.store.secret_key,
        *(servers.nats_url(user).split(":")[2].split("@")[0] for user in OWN),
        servers.database_url.split(":")[2].split("@")[0],
    ]

    shown = "".join((Path("/proc") / str(servers[name].pid) / "cmdline").read_text() for name in SERVERS)

    assert not any(secret in shown for secret in secrets)


async def test_a_paused_server_answers_again_once_it_is_resumed(servers: Servers):
    servers["postgres"].pause()
    with pytest.raises(TimeoutError):
        await asyncpg.connect(servers.database_url, timeout=1)

    servers["postgres"].resume()
    connection = await asyncpg.connect(servers.database_url)
    assert await connection.fetchval("SELECT 1") == 1
    await connection.close()


def test_a_store_that_had_more_room_than_the_disk_has_now_is_made_smaller(home: Path):
    with Servers(home) as servers:
        reserved = servers.home.path / "nats" / "room.json"
        room = json.loads(reserved.read_text())["bytes"]
        asyncio.run(provision(servers.nats_url("infra"), max_bytes=room - room // 5))  # as if the disk had been emptier: over the 70 % of today
        reserved.write_text(json.dumps({"bytes": room * 2}))

    with Servers(home) as servers:
        assert f"max_file_store: {room * 2}" in (servers.home.path / "nats" / "nats.conf").read_text()
        assert asyncio.run(facts_room(servers)) < room - room // 5
        servers["nats"].restart()
        assert f"max_file_store: {room * 2}" not in (servers.home.path / "nats" / "nats.conf").read_text()


async def test_three_servers_replicate_and_outlive_one_of_them(home: Path):
    with Cluster(home, 3) as cluster:
        configs = await stream_configs(cluster.nats_url("infra"))
        assert {name: config["num_replicas"] for name, config in configs.items()} == {"EV": 3, "TEL": 3, "WORK": 3, "RATE": 3}
        assert configs["TEL"]["storage"] == configs["RATE"]["storage"] == "memory"

        cluster["nats-1"].kill()
        async with connected(cluster.nats_url("infra")) as client:
            assert await eventually(lambda: appended(client), patience=20)
        cluster["nats-1"].start()


# `up`


async def test_what_crashes_is_started_again_and_the_state_says_so(home: Path):
    with up(home) as supervisor:
        before = state(home)["pids"]
        for name in SERVERS:
            os.kill(before[name], signal.SIGKILL)

        for name in SERVERS:
            supervisor.says(f"{name:<10} ended with SIGKILL")
            await eventually(lambda name=name: state(home)["pids"][name] not in (None, before[name]))
        for name in SERVERS:
            supervisor.says(f"{name:<10} 127.0.0.1:{state(home)['ports'][name]}")


@pytest.mark.parametrize("asked", [signal.SIGINT, signal.SIGTERM])
def test_nothing_stays_behind_when_it_is_asked_to_stop(home: Path, asked: signal.Signals):
    with up(home) as supervisor:
        pids = [state(home)["pids"][name] for name in SERVERS]
        assert set(pids) <= set(living(home))

        supervisor.process.send_signal(asked)

        assert supervisor.process.wait(15) == 0
        assert living(home) == []
        assert set(state(home)["pids"].values()) == {None}


async def test_nothing_stays_behind_when_it_is_killed_and_the_next_one_goes_on(home: Path):
    with up(home) as supervisor:
        ports = state(home)["ports"]
        supervisor.process.kill()
        supervisor.process.wait()
        with up(home):  # at once, while the old servers still die
            assert state(home)["ports"] == ports

    with up(home) as supervisor:
        supervisor.process.kill()
        await eventually(lambda: living(home) == [], patience=5)


@pytest.mark.alone
def test_a_second_ctrl_c_kills_at_once(home: Path, tmp_path: Path):
    stubborn = program(tmp_path, f"trap '' TERM\nexec {sys.executable} -m http.server --bind 127.0.0.1 ${{4#*:}}")

    with up(home, TRAINYARD_RCLONE_BIN=str(stubborn)) as supervisor:
        supervisor.process.send_signal(signal.SIGINT)
        supervisor.says("stopping")
        time.sleep(0.2)  # two signals that arrive together are one
        supervisor.process.send_signal(signal.SIGINT)

        assert supervisor.process.wait(3) == 130
        assert living(home) == []


def test_a_second_up_finds_the_first(home: Path):
    with up(home) as supervisor:
        second = ordered("up", home)

        assert (second.returncode, second.stderr) == (0, "")
        assert second.stdout == f"already running: http://127.0.0.1:8000 (pid {supervisor.process.pid})\n"
        assert "postgres" in ordered("status", home).stdout


def test_status_of_a_home_where_nothing_runs(home: Path):
    answer = ordered("status", home)

    assert (answer.returncode, answer.stdout) == (1, f"not running: {home}\n")


def test_a_kept_port_that_somebody_took_is_replaced_for_good(home: Path):
    with Servers(home) as servers:
        before = dict(servers.home.ports)

    with listening(before["s3"]), Servers(home) as servers:
        after = dict(servers.home.ports)
    with Servers(home) as servers:
        assert servers.home.ports == after
    assert {name for name in after if after[name] != before[name]} == {"s3"}


def test_a_port_that_another_home_has_chosen_is_left_to_it_before_anybody_listens(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    one, other = Home(home), Home(tmp_path / "home")
    drawn = iter([7, 7, 8])
    monkeypatch.setattr("secrets.randbelow", lambda _: next(drawn))
    try:
        for each in (one, other):
            each.open()
            each.choose_ports(["nats"])

        assert other.ports["nats"] == one.ports["nats"] + 1
    finally:
        one.unlock()
        other.unlock()


def test_a_taken_port_is_refused_in_one_line(home: Path):
    with listening(0) as port:
        answer = ordered("up", home, TRAINYARD_PORT=str(port))

    assert refused(answer).startswith(f"TRAINYARD_PORT: 127.0.0.1:{port} is taken by another program: choose another")
    assert living(home) == []


def test_a_home_that_cannot_be_made_is_refused_in_one_line(tmp_path: Path):
    (tmp_path / "file").touch()

    assert "can't be written: Not a directory" in refused(ordered("up", tmp_path / "file" / "home"))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root starts PostgreSQL as somebody else")
@pytest.mark.skipif(not can_disguise("nobody"), reason="no user namespaces here")
async def test_root_may_keep_its_home_to_itself(home: Path):
    home.parent.chmod(0o700)

    with Servers(home) as servers:
        connection = await asyncpg.connect(servers.database_url)
        assert await connection.fetchval("select 1") == 1
        await connection.close()
    assert home.parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.skipif(os.geteuid() != 0, reason="only root starts PostgreSQL as somebody else")
def test_a_folder_that_postgres_cannot_pass_is_named_and_left_alone(home: Path):
    (home / "postgres").mkdir(parents=True)
    shutil.chown(home / "postgres", "nobody")  # as where the kernel makes no user namespaces
    home.parent.chmod(0o700)

    assert f"`chmod o+x {home.parent}`" in refused(ordered("up", "--without-services", home))
    assert home.parent.stat().st_mode & 0o777 == 0o700
    assert living(home) == []


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"TRAINYARD_PORT": "99999"}, "TRAINYARD_PORT: Expected `int` <= 65535"),
        ({"TRAINYARD_PORT": "0", "TRAINYARD_MAX_FILE_MB": "none"}, "TRAINYARD_MAX_FILE_MB: Expected `int`"),
        ({"TRAINYARD_S3_BUCKET": "../x"}, "TRAINYARD_S3_BUCKET: Expected `str` matching regex"),
        ({"TRAINYARD_NATS_BIN": "/nowhere"}, "TRAINYARD_NATS_BIN: /nowhere is not a program that can be run"),
    ],
)
def test_a_wrong_setting_is_refused_in_one_line(home: Path, settings: dict[str, str], words: str):
    assert words in refused(ordered("up", home, **settings))
    assert living(home) == []


def test_a_missing_wheel_is_refused_with_what_to_do():
    with pytest.raises(Refused, match=r"no-such-wheel is not installed: run `pip install .* infra/embedded/servers.txt`, or let TRAINYARD_NATS_BIN"):
        find_program(wheel="no-such-wheel", path="bin/x", override="", setting="TRAINYARD_NATS_BIN")


def test_a_nearly_full_disk_is_refused(home: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=GIB - 1024**2))

    with pytest.raises(Refused, match="1023 MiB free; at least 1 GiB is needed"):
        Home(home).open()


def test_a_part_that_does_not_get_ready_shows_the_end_of_its_log(home: Path, tmp_path: Path):
    broken = program(tmp_path, "echo no s3 today\nexit 3")

    answer = ordered("up", "--without-services", home, TRAINYARD_RCLONE_BIN=str(broken))

    assert answer.returncode == 1
    assert answer.stderr == f"s3 ended with exit code 3 before it was ready\n  | no s3 today\n  all of it: {home}/logs/s3.log\n"
    assert living(home) == []


def test_a_server_of_ones_own_is_not_started_here(home: Path, servers: Servers):
    with up(home, TRAINYARD_NATS_URL=servers.nats_url("infra")):
        assert state(home)["pids"]["nats"] is None
        assert "nats" not in state(home)["ports"]
        assert state(home)["pids"]["postgres"]


# Helpers


@pytest.fixture
def home() -> Iterator[Path]:
    with fresh_home() as home:
        yield home


@pytest.fixture(scope="module")
def servers() -> Iterator[Servers]:
    """Not those of the session: these tests spoil a stream and pause a server."""
    with all_servers() as servers:
        yield servers


class Supervisor:
    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.heard = ""

    def says(self, line: str) -> None:
        """Now or already."""
        while line not in self.heard:
            assert self.process.stdout
            said = self.process.stdout.readline()
            assert said, f"ended without {line!r}:\n{self.heard}"
            self.heard += said


@contextlib.contextmanager
def up(home: Path, **settings: str) -> Iterator[Supervisor]:
    with subprocess.Popen(
        [sys.executable, "-m", "infra.embedded", "up", "--without-services"],
        env=environ(home, settings),
        cwd=REPOSITORY,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as process:
        supervisor = Supervisor(process)
        try:
            supervisor.says("ready without services\n")
            yield supervisor
        finally:
            process.terminate()
            process.wait(15)


def ordered(*order: str | Path, **settings: str) -> subprocess.CompletedProcess[str]:
    *words, home = order
    return subprocess.run(
        [sys.executable, "-m", "infra.embedded", *map(str, words)],
        env=environ(Path(home), settings),
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def refused(answer: subprocess.CompletedProcess[str]) -> str:
    assert (answer.returncode, answer.stdout) == (1, "")
    assert answer.stderr.count("\n") == 1
    return answer.stderr


def environ(home: Path, settings: dict[str, str]) -> dict[str, str]:
    shell = {name: value for name, value in os.environ.items() if not name.startswith("TRAINYARD_")}
    return {**shell, "TRAINYARD_HOME": str(home), **settings}


def state(home: Path) -> dict[str, Any]:
    return json.loads((home / "run" / "state.json").read_text())


def living(home: Path) -> list[int]:
    """Every process but this one that knows of the home, zombies aside (who has adopted them may be slow to bury them)."""
    found: list[int] = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            knows = str(home).encode() in (folder / "cmdline").read_bytes() + (folder / "environ").read_bytes()
            if knows and ") Z " not in (folder / "stat").read_text() and int(folder.name) != os.getpid():
                found.append(int(folder.name))
    return found


def program(folder: Path, script: str) -> Path:
    path = folder / "program"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


@contextlib.contextmanager
def listening(port: int) -> Iterator[int]:
    with socket.create_server(("127.0.0.1", port)) as server:
        yield server.getsockname()[1]


@contextlib.asynccontextmanager
async def connected(url: str, *, user: str = "infra", denied: list[str] | None = None) -> AsyncIterator[Client]:
    async def hear(error: Exception) -> None:
        if denied is not None:
            denied.append(str(error).lower())

    client = await nats.connect(url.split(","), inbox_prefix=f"_INBOX_{user}".encode(), error_cb=hear)
    try:
        yield client
    finally:
        await client.close()


async def sessions(servers: Servers) -> int:
    """Others than this one that are at work."""
    connection = await asyncpg.connect(servers.database_url)
    try:
        return await connection.fetchval("SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND pid <> pg_backend_pid()")
    finally:
        await connection.close()


async def append(servers: Servers, subject: str, *, user: str) -> None:
    async with connected(servers.nats_url(user), user=user) as client:
        await client.jetstream().publish(subject, b"{}")


async def stream_configs(url: str) -> dict[str, dict[str, Any]]:
    """Without what depends on the disk or on the server's version, and without what is off unless somebody asks for it."""
    ignored = {"name", "metadata", "max_bytes", "max_msg_size", "mirror_direct", "sealed", "consumer_limits"}
    async with connected(url) as client:
        answers = {name: json.loads((await client.request(f"$JS.API.STREAM.INFO.{name}")).data) for name in ("EV", "TEL", "WORK", "RATE")}
    return {name: {key: value for key, value in answer["config"].items() if key not in ignored} for name, answer in answers.items()}


async def facts_room(servers: Servers) -> int:
    async with connected(servers.nats_url("infra")) as client:
        return (await client.jetstream().stream_info("EV")).config.max_bytes or 0


async def appended(client: Client) -> PubAck | None:
    """None while the cluster chooses a leader."""
    try:
        return await client.jetstream(timeout=1).publish("ev.t.job.created.x", b"{}")
    except (TimeoutError, NoStreamResponseError, APIError):
        return None


async def all_refusals(client: Client, denied: list[str]) -> None:
    """Refusals come in order, but not before the answer to a flush: so wait for that of one more."""
    known = len(denied)
    await client.publish(LAST, b"")
    await eventually(lambda: any(LAST in error for error in denied[known:]))


async def put_something_everywhere(servers: Servers) -> None:
    await append(servers, "ev.t.job.created.kept", user="gateway")
    connection = await asyncpg.connect(servers.database_url)
    await connection.execute("CREATE TABLE kept (id int); INSERT INTO kept VALUES (42)")
    await connection.close()
    bucket(servers).put_object(servers.store.bucket, "a/kept", io.BytesIO(b"42"), 2)


async def found_everywhere(servers: Servers) -> bool:
    async with connected(servers.nats_url("export"), user="export") as client:
        assert await client.jetstream().get_last_msg("EV", "ev.t.job.created.kept", direct=True)
    connection = await asyncpg.connect(servers.database_url)
    assert await connection.fetchval("SELECT id FROM kept") == 42
    await connection.close()
    with contextlib.closing(bucket(servers).get_object(servers.store.bucket, "a/kept")) as kept:
        return kept.read() == b"42"


def bucket(servers: Servers) -> Minio:
    store = servers.store
    return Minio(store.endpoint.removeprefix("http://"), store.access_key, store.secret_key, secure=False, region="us-east-1")

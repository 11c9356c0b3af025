"""When the log has lost facts: the gateway refuses to go on, and the copy in the database brings them back."""

import shutil

import httpx
import pytest

from infra.embedded import Servers
from infra.embedded.__main__ import TOOLS, run
from infra.embedded.process import NotReady
from tests.kit.gateway import own_port
from tests.kit.servers import fresh_home


def test_a_lost_log_comes_back_from_the_copy_and_the_gateway_goes_on():
    with fresh_home() as home, Servers(home) as servers:
        gateway = servers.service("gateway", port=own_port(servers, "gateway"))
        gateway.start()
        url = f"http://{gateway.part.address}"
        made = [httpx.post(f"{url}/projects", json={"name": f"project {n}"}).json()["id"] for n in range(7)]
        gateway.stop()

        servers["nats"].stop()
        shutil.rmtree(home / "nats")
        servers.stop()
        servers.start()
        refused = servers.service("gateway", port=own_port(servers, "gateway"))

        with pytest.raises(NotReady, match="embedded restore"):
            refused.start()
        assert run(servers, TOOLS["restore"]) == 0
        refused.start()
        url = f"http://{refused.part.address}"
        listed = httpx.get(f"{url}/projects").json()
        again = httpx.patch(f"{url}/projects/{made[0]}", json={"name": "goes on"})
        refused.stop()

    assert [project["id"] for project in listed["items"]] == made[::-1]
    assert again.status_code == 200
    assert again.headers["etag"] == '"8"'


def test_restore_brings_back_nothing_when_nothing_is_lost(capfd: pytest.CaptureFixture[str]):
    with fresh_home() as home, Servers(home) as servers:
        gateway = servers.service("gateway", port=own_port(servers, "gateway"))
        gateway.start()
        httpx.post(f"http://{gateway.part.address}/projects", json={"name": "here"})
        gateway.stop()

        assert run(servers, TOOLS["restore"]) == 0

    assert "lost nothing" in capfd.readouterr().out

"""Run the whole platform on one machine: `python -m infra.embedded up`."""

import argparse
import subprocess
import sys

from infra.embedded.home import Home
from infra.embedded.process import NotReady
from infra.embedded.servers import Servers
from infra.embedded.services import REPOSITORY
from infra.embedded.settings import Settings
from infra.embedded.supervisor import Supervisor, complain, say
from libs.config import Refused, load

HELP = """\
up       starts NATS, PostgreSQL, an object store and the four services, and keeps them running until Ctrl-C;
         a second Ctrl-C kills them at once
status   tells which parts run; exit code 1 unless all do
rebuild  folds the log into the views anew, beside those that are being read, and swaps them
restore  appends what the log has lost from the copy of it in the database
users    adds, lists and changes users: `python -m infra.embedded users add --help`

Data, logs, ports and secrets are in TRAINYARD_HOME (./.trainyard); the API listens on TRAINYARD_PORT (8000).
TRAINYARD_NATS_URL, TRAINYARD_DATABASE_URL and TRAINYARD_S3_ENDPOINT name servers of your own, which are then
not started here; docs/settings.md lists all settings.
Exit codes: 0 stopped as asked or running already, 1 refused or failed, 2 wrong arguments, 130 killed by a second Ctrl-C.
"""


TOOLS = {"rebuild": ["services.gateway", "rebuild"], "restore": ["infra.restore"], "users": ["services.gateway", "users"]}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m infra.embedded", description=__doc__, epilog=HELP, formatter_class=argparse.RawDescriptionHelpFormatter)
    orders = parser.add_subparsers(dest="order", required=True, metavar="{up,status,rebuild,restore,users}")
    up = orders.add_parser("up", help="start everything and keep it running")
    up.add_argument("--without-services", action="store_true", help="only NATS, PostgreSQL and the object store")
    orders.add_parser("status", help="which parts run")
    orders.add_parser("rebuild", help="make the views anew from the log")
    orders.add_parser("restore", help="bring back what the log has lost")
    users = orders.add_parser("users", help="add, list and change users", add_help=False)
    users.add_argument("rest", nargs=argparse.REMAINDER)
    arguments, more = parser.parse_known_args()
    if more and arguments.order != "users":
        parser.error(f"unrecognized arguments: {' '.join(more)}")
    try:
        settings = load(Settings)
    except Refused as refused:
        complain(str(refused))
        return 1
    if arguments.order == "status":
        return status(Home(settings.home))
    if arguments.order in TOOLS:
        rest = [*more, *arguments.rest] if arguments.order == "users" else []
        return use(Servers(settings.home, settings), [*TOOLS[arguments.order], *rest])
    return Supervisor(Servers(settings.home, settings), with_services=not arguments.without_services).run()


def use(servers: Servers, tool: list[str]) -> int:
    """On the running servers of this home, else on ones started just for it."""
    try:
        if servers.home.supervisor():
            return run(servers.attach(), tool)
        with servers:
            return run(servers, tool)
    except (Refused, NotReady) as problem:
        complain(str(problem))
        return 1


def run(servers: Servers, tool: list[str]) -> int:
    environ = servers.environ("gateway", port=0) | {"PYTHONPATH": str(REPOSITORY)}
    if tool == TOOLS["restore"]:
        environ["TRAINYARD_NATS_URL"] = servers.nats_url("infra")
    return subprocess.run([sys.executable, "-P", "-m", *tool], env=environ, check=False).returncode


def status(home: Home) -> int:
    supervisor = home.supervisor()
    if supervisor is None:
        say(f"not running: {home.path}")
        return 1
    say(str(supervisor))
    ports, pids = home.state()["ports"], home.state()["pids"]
    ours = {part: pid for part, pid in pids.items() if part in ports}  # the others are servers of the user's own
    for part, pid in ours.items():
        say(f"{part:<10} 127.0.0.1:{ports[part]:<6} {f'pid {pid}' if pid else 'down'}")
    return 0 if all(ours.values()) else 1


if __name__ == "__main__":
    sys.exit(main())

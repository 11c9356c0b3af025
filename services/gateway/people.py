"""Users, for who runs the platform: `python -m services.gateway users`. It makes the first admin."""

import argparse
import getpass
import sys
from collections.abc import Awaitable, Callable
from uuid import uuid4

from libs.config import Refused
from services.gateway.accounts import Accounts
from services.gateway.domain.account import ROLES
from services.gateway.domain.credit import MOST, Grant
from services.gateway.domain.errors import DomainError
from services.gateway.domain.user import ChangeRole, DeleteUser, User
from services.gateway.views import users

OPERATOR = "operator"
HELP = """\
A password is asked for, or read as the first line of standard input when that is no terminal:

  python -m services.gateway users add ann --email ann@example.org --role admin < password.txt
"""

Say = Callable[[str], None]


def arguments(orders: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = orders.add_parser(
        "users", help="add, list and change users", description=__doc__, epilog=HELP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="{add,list,password,role,grant,delete}")
    add = actions.add_parser("add", help="add a user")
    add.add_argument("username")
    add.add_argument("--email", required=True)
    add.add_argument("--full-name", default="")
    add.add_argument("--role", choices=ROLES, default="user")
    actions.add_parser("list", help="all users, the oldest first")
    password = actions.add_parser("password", help="set a password; all sessions of the user end")
    password.add_argument("username")
    role = actions.add_parser("role", help="change what a user may do")
    role.add_argument("username")
    role.add_argument("role", choices=ROLES)
    grant = actions.add_parser("grant", help="grant credits to a user")
    grant.add_argument("username")
    grant.add_argument("amount", type=_amount)
    grant.add_argument("--reason", default="")
    delete = actions.add_parser("delete", help="delete a user; what is in the workspace stays")
    delete.add_argument("username")


async def do(order: argparse.Namespace, accounts: Accounts, listed: Callable[[], Awaitable[list[users.Row]]], *, tell: Say) -> None:
    try:
        match order.action:
            case "list":
                for row in await listed():
                    tell(f"{row.id}  {row.username:<24} {row.role:<10} {row.email}  {row.created_at:%Y-%m-%d}")
            case "add":
                user = await accounts.register(
                    username=order.username, email=order.email, password=_password(), full_name=order.full_name, role=order.role, actor=OPERATOR
                )
                tell(f"added {user.username} ({user.role}), id {user.id}")
            case "password":
                user = await _known(accounts, order.username)
                await accounts.set_password(user, _password(), actor=OPERATOR)
                tell(f"{user.username} has a new password; all sessions have ended")
            case "role":
                user = await _known(accounts, order.username)
                await accounts.run(ChangeRole(user_id=user.id, role=order.role), actor=OPERATOR)
                tell(f"{user.username} is {order.role} now")
            case "grant":
                user = await _known(accounts, order.username)
                granted = await accounts.run(Grant(user_id=user.id, grant_id=str(uuid4()), amount=order.amount, reason=order.reason), actor=OPERATOR)
                tell(f"{user.username} has {granted.state.balance} credits now")
            case "delete":
                user = await _known(accounts, order.username)
                await accounts.run(DeleteUser(user_id=user.id), actor=OPERATOR)
                tell(f"{user.username} is deleted")
    except DomainError as refusal:
        raise Refused(str(refusal)) from refusal


async def _known(accounts: Accounts, username: str) -> User:
    if (user := await accounts.named(username)) is None:
        raise Refused(f"There is no user '{username}'")
    return user


def _amount(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= MOST:
        raise argparse.ArgumentTypeError(f"1 to {MOST} credits can be granted at once")
    return int(text)


def _password() -> str:
    if not sys.stdin.isatty():
        return sys.stdin.readline().rstrip("\r\n")
    password = getpass.getpass("Password: ")
    if password != getpass.getpass("Again: "):
        raise Refused("The two are not the same")
    return password

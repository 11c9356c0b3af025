"""A run's process as its worker meets it: forked from a warm forkserver, cancelled, killed, resumed, orphaned."""

import asyncio
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, cast

import msgspec
import psutil
import pytest

from libs.runtime.waiting import within
from services.training.children import Child, Children
from services.training.forking import Order, Started
from services.training.frames import (
    Cancel,
    Checkpoint,
    Completed,
    Evaluated,
    Failed,
    Frame,
    FromChild,
    Hello,
    Phase,
    Ready,
    RunSpec,
    Step,
    Stopped,
    Unpacker,
    from_child,
    packed,
)
from tests.kit import finetunes as kit
from tests.kit.eventually import eventually

FIRST_STEP = 1.5
"""Seconds of computing, which is what it takes on a machine that has nothing else to do."""


@pytest.fixture(scope="module")
async def children() -> AsyncIterator[Children]:
    children = Children()
    children.open()
    await children.warm()
    yield children
    await children.close()


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture
async def start(children: Children) -> AsyncIterator[Callable[[RunSpec], Awaitable["Line"]]]:
    lines: list[Line] = []

    async def start(spec: RunSpec) -> Line:
        lines.append(Line(await children.start(spec)))
        return lines[-1]

    yield start
    for line in lines:
        line.child.sock.close()


class Line:
    """The worker's end."""

    def __init__(self, child: Child) -> None:
        self.child = child
        self.heard: list[FromChild] = []
        self._unpacker = Unpacker()
        child.sock.setblocking(False)

    async def until(self, kind: type[Frame], *, step: int = 0) -> Any:
        return await self._hear(lambda frame: isinstance(frame, kind) and getattr(frame, "step", 0) >= step)

    async def end(self) -> list[FromChild]:
        """Everything it says, to the end; then its exit code is 0."""
        await self._hear(lambda frame: isinstance(frame, Completed | Stopped | Failed))
        await asyncio.wait_for(self.child.ended.wait(), 10)
        assert self.child.status == 0
        return self.heard

    async def end_of_line(self) -> None:
        """What it had said before it was killed."""
        assert await self._hear(lambda frame: False) is None
        await asyncio.wait_for(self.child.ended.wait(), 10)

    def send(self, frame: Frame) -> None:
        self.child.sock.sendall(packed(frame))

    async def _hear(self, wanted: Callable[[FromChild], bool]) -> FromChild | None:
        loop = asyncio.get_running_loop()
        while data := await asyncio.wait_for(loop.sock_recv(self.child.sock, 65536), 60):
            frames = [from_child.decode(body) for body in self._unpacker.feed(data)]
            self.heard += frames
            if found := next(filter(wanted, frames), None):
                return found
        return None


def losses(heard: list[FromChild]) -> dict[int, str]:
    return {frame.step: frame.loss.hex() for frame in heard if isinstance(frame, Step)}


def content(path: str) -> bytes:
    return Path(path).read_bytes()


def last_checkpoint(heard: list[FromChild]) -> Checkpoint:
    return [frame for frame in heard if isinstance(frame, Checkpoint)][-1]


def report(sock: socket.socket, spec: RunSpec | None) -> None:
    """What a child finds loaded when it begins."""
    import sys

    import torch

    untouched = not torch.cuda.is_initialized() and "bitsandbytes" not in sys.modules and "peft" not in sys.modules
    ready = {"services.training.trainers.llm", "transformers.models.llama.modeling_llama", "torch._dynamo"} <= sys.modules.keys()
    sock.sendall(msgspec.msgpack.encode([untouched, ready]))


async def test_the_forkserver_has_everything_loaded_and_cuda_untouched(children):
    child = await children.start(None, entry=f"{__name__}:report")
    child.sock.setblocking(False)

    with child.sock:
        said = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(child.sock, 100), 20)

    assert msgspec.msgpack.decode(said) == [True, True]


async def test_little_is_computed_from_the_start_to_the_first_step(start, cache, tmp_path):
    await (await start(kit.spec(tmp_path / "warm", kit.sums(8), cache=cache))).end()  # builds the model

    line = await start(kit.spec(tmp_path / "run", kit.sums(40, held_out=8), cache=cache))
    await line.until(Step)

    spent = psutil.Process(line.child.pid).cpu_times()
    assert spent.user + spent.system < FIRST_STEP
    heard = await line.end()
    kinds = [type(frame) for frame in heard]
    assert kinds[0] is Hello
    assert kinds.index(Phase) < kinds.index(Evaluated) < kinds.index(Ready) < kinds.index(Step)
    assert kinds[-1] is Completed


def dies_at_step_11(sock: socket.socket, spec: RunSpec) -> None:
    from services.training.runner import entry, link

    class Doomed(link.Link):
        def tell(self, frame: Frame) -> None:
            super().tell(frame)
            if isinstance(frame, Step) and frame.step == 11:
                os.kill(os.getpid(), signal.SIGKILL)

    entry.Link = Doomed
    entry.run(sock, spec)


@pytest.mark.parametrize(
    "tuning", [{"lora_dropout": 0.1, "gradient_checkpointing": True}, {"method": "qlora"}, {"method": "full"}], ids=["lora with dropout", "qlora", "full"]
)
async def test_a_killed_run_goes_on_from_its_checkpoint_as_if_nothing_had_happened(start, children, cache, tmp_path, tuning):
    def spec(name: str, **more: Any) -> RunSpec:
        return kit.spec(tmp_path / name, kit.sums(44, held_out=4), cache=cache, num_epochs=2, save_steps=4, eval_steps=5, **tuning, **more)

    undisturbed = await (await start(spec("undisturbed"))).end()

    victim = Line(await children.start(spec("killed"), entry=f"{__name__}:dies_at_step_11"))
    with victim.child.sock:
        await victim.until(Checkpoint, step=8)
        await victim.end_of_line()
    kept = last_checkpoint(victim.heard)
    resumed = await (await start(spec("resumed", attempt=2, resume=kept.path))).end()

    assert (victim.child.status, kept.step) == (-signal.SIGKILL, 8)
    assert losses(resumed) == {step: loss for step, loss in losses(undisturbed).items() if step > 8}
    ends = [heard[-1] for heard in (undisturbed, resumed)]
    assert all(isinstance(end, Completed) for end in ends)
    name = "model.safetensors" if tuning.get("method") == "full" else "adapter_model.safetensors"
    one, other = (content(end.artifacts[name]) for end in ends if isinstance(end, Completed))
    assert one == other
    first, second = (end.metrics for end in ends if isinstance(end, Completed))
    assert first | {"tokens_per_second": 0} == second | {"tokens_per_second": 0}


@pytest.mark.alone
async def test_a_cancelled_run_leaves_a_checkpoint_and_says_where_it_stopped(start, cache, tmp_path):
    line = await start(kit.spec(tmp_path / "run", kit.sums(40), cache=cache, max_steps=100_000))
    await line.until(Step, step=3)
    asked = time.monotonic()

    line.send(Cancel())
    heard = await line.end()

    assert time.monotonic() - asked < 5
    assert isinstance(heard[-1], Stopped)
    assert heard[-1].step == max(losses(heard)) == last_checkpoint(heard).step
    assert content(last_checkpoint(heard).path)


async def test_a_run_that_is_cancelled_before_its_first_step_just_stops(start, cache, tmp_path):
    line = await start(kit.spec(tmp_path / "run", kit.sums(40), cache=cache, max_steps=100_000))

    line.send(Cancel())
    heard = await line.end()

    assert heard[-1] == Stopped(step=0)
    assert not [frame for frame in heard if isinstance(frame, Checkpoint)]


async def test_a_child_whose_worker_hangs_up_leaves_at_once_and_writes_no_more(start, cache, tmp_path):
    line = await start(kit.spec(tmp_path / "run", kit.sums(40), cache=cache, max_steps=100_000, save_steps=1_000_000))
    await line.until(Step, step=2)

    line.child.sock.close()

    await asyncio.wait_for(line.child.ended.wait(), 5)
    assert not list((tmp_path / "run").glob("checkpoint*"))
    await eventually(lambda: not os.path.exists(f"/proc/{line.child.pid}"))


@pytest.mark.parametrize(
    ("tuning", "rows", "code"),
    [({}, [], "data"), ({"base_model": "/nowhere"}, kit.sums(2), "model"), ({"resume": "/nowhere.pt"}, kit.sums(2), "internal")],
    ids=["no rows", "no model", "no checkpoint"],
)
async def test_whatever_goes_wrong_is_the_last_frame_and_the_exit_code_is_0(start, cache, tmp_path, tuning, rows, code):
    heard = await (await start(kit.spec(tmp_path / "run", rows, cache=cache, **tuning))).end()

    assert isinstance(heard[-1], Failed)
    assert heard[-1].code == code
    assert heard[-1].message


def test_a_run_can_be_done_by_hand(cache, tmp_path, monkeypatch, capsys):
    from services.training.runner import entry

    file = tmp_path / "spec.json"
    file.write_bytes(msgspec.json.encode(kit.spec(tmp_path / "run", kit.sums(16), cache=cache, save_steps=2)))
    monkeypatch.setattr("sys.argv", ["entry", "--spec", str(file)])
    handler = signal.getsignal(signal.SIGINT)

    status = entry.main()

    signal.signal(signal.SIGINT, handler)
    frames = [msgspec.json.decode(line, type=FromChild) for line in capsys.readouterr().out.splitlines()]
    assert status == 0
    assert isinstance(frames[-1], Completed)
    assert len(list((tmp_path / "run").glob("checkpoint-*.pt"))) == 1


async def test_a_child_that_is_there_at_the_moment_when_nobody_wants_it_any_more_is_ended():
    children = Children()
    ours, theirs = socket.socketpair()
    born = await asyncio.create_subprocess_exec("sleep", "60", start_new_session=True)
    children._control, children._server = ours, cast("Any", born)
    with ours, theirs:
        forking = asyncio.create_task(children._fork(Order(entry="", spec=msgspec.Raw(b"\xc0")), theirs))
        await eventually(lambda: children._forks)

        children._hear(Started(pid=born.pid))
        forking.cancel()

        with pytest.raises(asyncio.CancelledError):
            await forking
    assert await within(10, born.wait()) == -signal.SIGKILL

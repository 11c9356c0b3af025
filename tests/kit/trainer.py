"""A trainer without a model, for what happens around one: each "loss" follows from all steps before it, so that a resume that loses or doubles a step shows."""

import ctypes
import hashlib
import json
import os
import signal
import socket
import struct
import sys
import threading
import time
from pathlib import Path
from typing import Any

import msgspec

from services.training.frames import (
    BatchReduced,
    Cancel,
    Checkpoint,
    Completed,
    Evaluated,
    Failed,
    Frame,
    Hello,
    Phase,
    Ready,
    RunSpec,
    Sampled,
    Step,
    Stopped,
    Unpacker,
    packed,
    to_child,
)


class Script(msgspec.Struct, frozen=True, kw_only=True):
    """What a test wants of a run; it travels as the base model's revision, as JSON."""

    steps: int = 10
    save: int = 5
    pause: float = 0.0
    pauses: int = 1
    """Attempts that pause between steps; later ones hurry."""
    loading: float = 0.0
    die_at: int = 0
    """SIGKILL itself before this step, in the first `deaths` attempts."""
    deaths: int = 1
    exit_at: int = 0
    fail: str = ""
    """Ends with this code."""
    nan_at: int = 0
    hang_at: int = 0
    """Sleeps in C, deaf to everything but SIGKILL."""
    deaf: bool = False
    """Doesn't heed a cancel; SIGTERM ends it."""
    steal: str = ""
    """A file of others that it calls its own artifact."""
    artifacts: int = 1
    told: int = 0
    """Characters of its summary."""
    babble_at: int = 0
    calls_home: bool = False


def revision(**wanted: Any) -> str:
    return msgspec.json.encode(wanted).decode()


def losses(steps: int) -> list[float]:
    """Of an undisturbed run."""
    state, found = b"", list[float]()
    for step in range(1, steps + 1):
        state, loss = _next(state, step)
        found.append(loss)
    return found


def run(sock: socket.socket, spec: RunSpec) -> int:
    return _Run(sock, spec, msgspec.json.decode(spec.tuning.revision or "{}", type=Script)).go()


class _Run:
    def __init__(self, sock: socket.socket, spec: RunSpec, script: Script) -> None:
        self._sock = sock
        self._spec = spec
        self._script = script
        self._cancelled = threading.Event()
        self._folder = Path(spec.folder)
        self._state = b""
        self._step = 0
        threading.Thread(target=self._listen, daemon=True).start()

    def go(self) -> int:
        script = self._script
        rows = 0 if self._spec.merge else Path(self._spec.snapshot).read_bytes().count(b"\n")
        self._say(Hello(pid=os.getpid(), device="cpu", versions={"python": sys.version.split()[0]}))
        self._say(Phase(name="load"))
        if self._spec.merge:
            self._say(Phase(name="merge", done=50, total=100))
        self._wait(script.loading)
        if script.fail:
            return self._say(Failed(code=script.fail, message=f"as asked\0: {script.fail}"))
        if self._spec.resume:
            kept = json.loads(Path(self._spec.resume).read_bytes())
            self._state, self._step = bytes.fromhex(kept["state"]), kept["step"]
        self._say(Ready(step=self._step, total_steps=script.steps, facts={"rows": rows, "odd": float("nan")}))
        while self._step < script.steps:
            if self._cancelled.is_set() and not script.deaf:
                self._save()
                return self._say(Stopped(step=self._step))
            self._misbehave(self._step + 1)
            self._one_step()
        return self._complete()

    def _one_step(self) -> None:
        self._step += 1
        self._state, loss = _next(self._state, self._step)
        loss = float("nan") if self._step == self._script.nan_at else loss
        self._say(Step(step=self._step, loss=loss, lr=1e-4, epoch=self._step / self._script.steps, tokens=100, grad_norm=1.0, seconds=0.01))
        if self._step % self._script.save == 0:
            self._save()
            self._say(Evaluated(step=self._step, metrics={"eval_loss": loss, "perplexity": float("inf")}))
        if self._spec.attempt <= self._script.pauses:
            self._wait(self._script.pause)

    def _misbehave(self, step: int) -> None:
        script = self._script
        if step == script.die_at and self._spec.attempt <= script.deaths:
            os.kill(os.getpid(), signal.SIGKILL)
        if step == script.exit_at:
            os._exit(7)
        if step == script.babble_at:
            self._sock.sendall(struct.pack("<I", 2**31))
        if step == script.hang_at:
            signal.pthread_sigmask(signal.SIG_BLOCK, set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP})
            ctypes.PyDLL(None).sleep(3600)  # with the lock of the interpreter in hand: no other thread hears anything

    def _save(self) -> None:
        path = self._folder / f"checkpoint-{self._step}"
        path.write_text(json.dumps({"step": self._step, "state": self._state.hex()}))
        self._say(Checkpoint(step=self._step, path=str(path)))

    def _complete(self) -> int:
        self._misbehave(self._step + 1)
        if self._spec.merge:
            return self._merged()
        (self._folder / "adapter").write_bytes(self._state)
        self._say(BatchReduced(step=self._step, micro_tokens=64))
        self._say(Sampled(step=self._step, samples=[{"prompt": "2 + 2", "text": "four\0" + "!" * 100_000}]))
        artifacts = {"adapter": self._script.steal or str(self._folder / "adapter")}
        for n in range(1, self._script.artifacts):
            artifacts[f"{n:_>100}"] = artifacts["adapter"]
        summary = {
            "much": "!" * self._script.told,
            "connected": can_connect() if self._script.calls_home else None,
            "threads": os.environ.get("OMP_NUM_THREADS"),
        }
        return self._say(Completed(step=self._step, artifacts=artifacts, metrics={"eval_loss": 1.0}, summary=summary))

    def _merged(self) -> int:
        """What it was given, and the texts to compare models on."""
        given = sorted(path.name for path in Path(self._spec.merge).iterdir())
        place = self._folder / "weights"
        place.write_bytes(b"".join((Path(self._spec.merge) / name).read_bytes() for name in given))
        summary = {"merged": {"given": given, "texts": self._spec.texts, "snapshot": self._spec.snapshot}}
        return self._say(Completed(step=0, artifacts={"merged/model.safetensors": str(place)}, summary=summary))

    def _wait(self, seconds: float) -> None:
        if seconds and self._script.deaf:
            time.sleep(seconds)
        elif seconds:
            self._cancelled.wait(seconds)

    def _say(self, frame: Frame) -> int:
        self._sock.sendall(packed(frame))
        return 0

    def _listen(self) -> None:
        unpacker = Unpacker()
        while data := self._sock.recv(4096):
            if any(isinstance(to_child.decode(body), Cancel) for body in unpacker.feed(data)):
                self._cancelled.set()


def _next(state: bytes, step: int) -> tuple[bytes, float]:
    state = hashlib.sha256(state + str(step).encode()).digest()
    return state, int.from_bytes(state[:6], "big") / 2**48


def can_connect() -> bool:
    """To an address of this machine that is there in every network but an empty one."""
    with socket.socket() as listening, socket.socket() as calling:
        try:
            listening.bind(("127.0.0.1", 0))
            listening.listen()
            calling.connect(listening.getsockname())
        except OSError:
            return False
        return True

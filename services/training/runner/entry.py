"""Where a run's process begins, forked for a worker or by hand: `python -m services.training.runner.entry --spec spec.json`."""

import argparse
import logging
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import msgspec

from libs.runtime import orphan
from services.training.disk import DISK_FULL, is_disk_full
from services.training.frames import Checkpoint, Failed, FitSpec, Frame, Hello, RunSpec, Stopped
from services.training.snapshots import holds_images, holds_table

from . import machine
from .link import Link
from .outcome import Failure, Stop, plain, ran_out_of_memory
from .wishes import Wishes

LONGEST_MESSAGE = 2_000


def run(sock: socket.socket, spec: RunSpec | FitSpec) -> NoReturn:
    """The process's main: as long as Python lives, the last frame says how the run ended."""
    orphan.die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; what becomes of the run is the worker's to say
    wishes = Wishes()
    link = Link(sock, wishes)
    link.close(_end(spec, link.tell, wishes))
    os._exit(0)  # threads that load or download may still be at it


def _end(spec: RunSpec | FitSpec, tell: Callable[[Frame], None], wishes: Wishes) -> Frame:
    try:
        settle(spec)
        tell(Hello(pid=os.getpid(), device=machine.name(spec.device), versions=machine.versions()))
        return _fitted(spec, tell, wishes) if isinstance(spec, FitSpec) else _tuned(spec, tell, wishes)
    except Stop:
        return Stopped(step=0)
    except Failure as failure:
        return Failed(code=failure.code, message=plain(failure.message)[:LONGEST_MESSAGE], step=failure.step)
    except BaseException as error:  # noqa: BLE001 the worker can't read our stderr
        traceback.print_exc()
        if ran_out_of_memory(error):
            less = "batch_size or model_type, or fewer rows" if isinstance(spec, FitSpec) else "model, max_seq_length or lora_r, or the method qlora"
            return Failed(code="oom", message=f"The {spec.device} ran out of memory. Take a smaller {less}.")
        if is_disk_full(error):
            return Failed(code="disk_full", message=DISK_FULL)
        return Failed(code="internal", message=plain(f"{type(error).__name__}: {error}")[:LONGEST_MESSAGE])


def _tuned(spec: RunSpec, tell: Callable[[Frame], None], wishes: Wishes) -> Frame:
    from services.training.trainers import llm, merge  # a broken installation is a failed run, not a silent child

    return merge.merge(spec, tell, wishes) if spec.merge else llm.train(spec, tell, wishes)


def _fitted(spec: FitSpec, tell: Callable[[Frame], None], wishes: Wishes) -> Frame:
    if holds_table(spec.snapshot):
        from services.training.trainers import table

        return table.train(spec, tell, wishes)
    if holds_images(spec.snapshot):
        from services.training.trainers import image

        return image.train(spec, tell, wishes)
    raise Failure("data", "What was prepared of the data set is neither a table nor images. Upload it again.")


def settle(spec: RunSpec | FitSpec) -> None:
    """As many threads as were granted, and silence: what matters is said in frames."""
    threads = str(spec.threads)
    os.environ.update(
        OMP_NUM_THREADS=threads, RAYON_NUM_THREADS=threads, POLARS_MAX_THREADS=threads, TOKENIZERS_PARALLELISM="true" if spec.threads > 1 else "false"
    )
    import torch
    import transformers.utils.logging as transformers_logging
    from huggingface_hub.utils import disable_progress_bars

    torch.set_num_threads(spec.threads)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    disable_progress_bars()
    logging.getLogger("bitsandbytes").setLevel(logging.CRITICAL)  # it calls the missing of an optional download an error


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m services.training.runner.entry", description="Do one run without any service; frames come as JSON lines.")
    parser.add_argument("--spec", required=True, type=Path, metavar="FILE", help="a RunSpec or FitSpec as JSON (services/training/frames.py)")
    spec = msgspec.json.decode(parser.parse_args().spec.read_bytes(), type=RunSpec | FitSpec)
    Path(spec.folder).mkdir(parents=True, exist_ok=True)
    wishes = Wishes()
    signal.signal(signal.SIGINT, lambda *_: wishes.stop.set())
    last = _end(spec, _Printer(), wishes)
    _print(last)
    return 1 if isinstance(last, Failed) else 0


class _Printer:
    """Keeps the newest checkpoint only, as a worker would."""

    def __init__(self) -> None:
        self._kept: Path | None = None

    def __call__(self, frame: Frame) -> None:
        _print(frame)
        if isinstance(frame, Checkpoint):
            if self._kept and self._kept != Path(frame.path):
                self._kept.unlink(missing_ok=True)
            self._kept = Path(frame.path)


def _print(frame: Frame) -> None:
    sys.stdout.write(msgspec.json.encode(frame).decode() + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)

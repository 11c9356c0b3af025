"""`python -m infra.demo`: starts the platform unless it runs, fine-tunes a small model on a small data set, and says where the adapter is."""

import argparse
import signal
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import IO, Any, NoReturn

from infra.demo.api import Api, Refused
from infra.demo.bar import Bar
from infra.embedded.home import Home
from infra.embedded.services import REPOSITORY
from infra.embedded.settings import Settings
from libs import config
from libs.tiny import BASE

DATA = Path(__file__).parent / "marlow_yard.jsonl"
HYPERPARAMS = {
    "num_epochs": 6,
    "learning_rate": 1e-2,
    "per_device_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "max_seq_length": 256,
    "lora_r": 16,
    "lora_alpha": 32,
    "lora_dropout": 0.0,
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m infra.demo", description=__doc__)
    parser.add_argument("--model", default=BASE, help=f"base model: a Hugging Face id, or {BASE}, which comes along and needs no network (the default)")
    parser.add_argument("--method", choices=("lora", "qlora", "full"), default="lora")
    parser.add_argument("--data", type=Path, default=DATA, help="a data set of your own: JSON, JSON lines or CSV")
    parser.add_argument("--to", type=Path, help="folder for the exported files (default: demo/ in TRAINYARD_HOME)")
    parser.add_argument("--and-stop", action="store_true", help="stop the platform afterwards, if the demo has started it")
    arguments = parser.parse_args()
    if not arguments.data.is_file():
        parser.error(f"--data: there is no file {arguments.data}")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # also where a shell that put us into the background has SIGINT ignored
        signal.signal(number, _stop)
    try:
        settings = config.load(Settings)
        to = arguments.to or Path(settings.home) / "demo"
        with platform(settings, and_stop=arguments.and_stop) as url:
            fine_tune(Api(url), url, data=arguments.data, model=arguments.model, method=arguments.method, to=to)
    except (Refused, config.Refused) as refused:
        sys.stderr.write(f"the demo stops: {refused}\n")
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


@contextmanager
def platform(settings: Settings, *, and_stop: bool) -> Iterator[str]:
    """Its address. What the demo has started goes on after it, until Ctrl-C."""
    if running := Home(settings.home).supervisor():
        say(running)
        yield running.url
        return
    say("starting the platform")
    command = [sys.executable, "-m", "infra.embedded", "up"]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, start_new_session=True) as up:  # a Ctrl-C reaches us alone
        try:
            url = _ready(up)
            threading.Thread(target=_echo, args=[up.stdout], daemon=True).start()
            yield url
            if not and_stop:
                say("\nThe platform runs on. Ctrl-C ends it.")
                up.wait()
        finally:
            _end(up)


def _ready(up: "subprocess.Popen[str]") -> str:
    assert up.stdout
    for line in up.stdout:
        if line.startswith("ready "):
            return line.split()[1]
        say(f"  {line.rstrip()}")
    raise Refused("the platform did not start; the lines above say why")


def _echo(lines: IO[str]) -> None:
    """What the platform has to say meanwhile."""
    for line in lines:
        say(f"  {line.rstrip()}")


def _end(up: "subprocess.Popen[str]") -> None:
    if up.poll() is None:
        up.terminate()
    try:
        up.wait()
    except KeyboardInterrupt:
        up.terminate()  # asked twice, it kills what still runs
        up.wait()


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def fine_tune(api: Api, url: str, *, data: Path, model: str, method: str, to: Path) -> None:
    project = api.post("/projects", {"name": f"Demo: {data.stem.replace('_', ' ')}", "task_type": "qa"})
    path = f"/projects/{project['id']}"
    say(f"\n1. a project   {url}{path}")

    info = api.post(f"{path}/model/resolve", {"model_id": model})
    if not info["valid"]:
        raise Refused(f"{model} can't be fine-tuned: {'; '.join(info['warnings'])}")
    parameters = f"{info['num_parameters']:,}" if info["num_parameters"] else "an unknown number of"
    say(f"2. a base model   {model}: {parameters} parameters, {info['architecture']}")

    api.upload(f"{path}/files/upload", data, kind="dataset_upload")
    for job in api.get(f"{path}/jobs")["jobs"]:
        api.job(job["id"])
    stats = api.get(f"{path}/dataset/stats")
    splits = ", ".join(f"{found['count']} {split}" for split, found in stats["by_split"].items())
    say(f"3. a data set   {data.name}: {stats['valid']} examples ({splits})")

    run = api.post(f"{path}/train/start", {"method": method, "hyperparams": HYPERPARAMS})
    say(f"4. a fine-tune   {method}, job {run['job_id']}")
    losses = watch(api, path)
    say(f"   loss on held-out examples: {_losses(losses)}")

    export = api.post(f"{path}/export")
    api.job(export["job_id"])
    folder = fetch(api, path, to)
    say(f"5. an export   {folder}")
    for file in sorted(folder.iterdir()):
        say(f"     {file.name:<28} {file.stat().st_size:>10,} bytes")
    say(next_steps(url, path, folder, model))


def watch(api: Api, path: str) -> list[float]:
    """Draws the run's stream; the losses of its evaluations come out."""
    bar, losses, total = Bar(), [], 0
    for event, data in api.stream(f"{path}/train/logs/stream"):
        match event:
            case "progress":
                total = int(data["message"].rpartition("/")[2])
            case "log":
                bar.show(step=data["step"], total=total, loss=data["train_loss"], speed=lambda: _speed(api, path))
            case "eval":
                losses.append(data["eval_loss"])
            case "error":
                bar.end()
                raise Refused(data["error"])
            case "complete":
                bar.show(step=total, total=total, loss=data["final_train_loss"], speed=lambda: _speed(api, path))
                bar.end()
                if data["status"] != "success":
                    raise Refused(f"the run is {data['status']}")
            case _:
                continue
    return losses


def _speed(api: Api, path: str) -> float | None:
    return (api.get(f"{path}/train/status").get("current_metrics") or {}).get("tokens_per_second")


def _losses(losses: list[float]) -> str:
    return f"{losses[0]:.3f} before, {losses[-1]:.3f} after" if losses else "none was held out"


def fetch(api: Api, path: str, to: Path) -> Path:
    """Only names that the export lists are written, and only into the folder."""
    to.mkdir(parents=True, exist_ok=True)
    archive = api.download(f"{path}/export/download", to.with_suffix(".zip"))
    with zipfile.ZipFile(archive) as files:
        files.extractall(to)
    archive.unlink()
    return to.resolve()


def next_steps(url: str, path: str, folder: Path, model: str) -> str:
    lines = ["", "What to try next:", f"  - read             {folder / 'report.md'}: the loss curve, samples before and after, and where every row came from"]
    if model != BASE:
        lines += [f'  - load it:         PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("{model}"), "{folder}")']
    lines += [
        "  - your own data:   make demo DATA=your.jsonl",
        "  - a real model:    make demo MODEL=HuggingFaceTB/SmolLM2-135M-Instruct",
        f"  - the API:         {url}/docs",
        f"  - every fact:      {url}/v2/events?about={path.rsplit('/', 1)[1]}",
    ]
    return "\n".join(lines)


def say(line: Any) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())

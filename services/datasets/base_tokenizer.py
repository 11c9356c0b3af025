"""The tokenizer of a project's base model: from the hub, from a folder or our own; where it has none that can be read, an estimate."""

import hashlib
import logging
import os
import tempfile
import time
from pathlib import Path
from urllib.parse import quote, urljoin, urlsplit

import certifi
import msgspec
import urllib3

from libs import tiny
from libs.config import Datasets
from libs.tiny import tokenizer as tiny_tokenizer

from .counting import Counting, Unfit, estimate, read

log = logging.getLogger(__name__)

LARGEST = 64 * 1024 * 1024
PATIENCE = 120.0
"""Seconds for a download."""
REDIRECTS = 5
FILE = "tokenizer.json"
OWN = "trainyard/"
"""What the names of models begin with that were trained here."""


class HubDown(OSError):
    """Nobody can tell now what the tokenizer is: an outage, not the work's fault."""


class _None(Exception):
    """There is none for us. The text says why."""


class Found(msgspec.Struct, frozen=True, kw_only=True):
    counting: Counting
    note: str = ""
    """Why it isn't the base model's."""


def run_of(base_model: str) -> str:
    """The train job that left it, where it is a model of our own; else nothing."""
    return base_model.removeprefix(OWN) if base_model.startswith(OWN) and base_model != tiny.BASE else ""


def find(base_model: str, revision: str, settings: Datasets, *, left: bytes = b"") -> Found:
    """Takes its time: for a thread. `left` is what its run has left, where it is a model of our own."""
    if not base_model:
        return Found(counting=estimate())
    if base_model == tiny.BASE:
        return Found(counting=Counting(tiny_tokenizer.build(), name=tiny.BASE))
    try:
        if run_of(base_model):
            data = left or _nothing(base_model)
        else:
            data = _from_folder(base_model, settings) if base_model.startswith("/") else _from_hub(base_model, revision, settings)
        return Found(counting=read(data, name=base_model))
    except _None as why:
        note = str(why)
    except Unfit as why:
        log.warning("a tokenizer can't be read: %s", why, extra={"base_model": base_model})
        note = f"The {FILE} of {base_model} can't be read"
    return Found(counting=estimate(), note=f"{note}; tokens were estimated instead, a little more than most models make of a text.")


def _nothing(base_model: str) -> bytes:
    raise _None(f"The run of {base_model} left no {FILE} that is still there")


def _from_folder(path: str, settings: Datasets) -> bytes:
    roots = [Path(root.strip()).resolve() for root in settings.source_roots.split(",") if root.strip()]
    try:
        file = Path(path, FILE).resolve(strict=True)
        if any(file.is_relative_to(root) for root in roots) and file.is_file() and file.stat().st_size <= LARGEST:
            return file.read_bytes()
    except (OSError, RuntimeError, ValueError):
        pass  # what can't be looked at is as good as not there, and no one is told which
    raise _None(f"{path} has no {FILE} that can be read here")


def _from_hub(base_model: str, revision: str, settings: Datasets) -> bytes:
    """A commit's is kept; the newest may be another each time."""
    if not revision:
        return _downloaded(base_model, "main", settings)
    folder = Path(settings.tokenizers_folder).expanduser()
    kept = folder / f"{hashlib.sha256(f'{settings.hf_endpoint} {base_model}@{revision}'.encode()).hexdigest()}.json"
    if kept.exists():
        return kept.read_bytes()
    data = _downloaded(base_model, revision, settings)
    try:
        _keep(data, kept)
    except OSError as error:
        log.warning("tokenizers can't be kept in %s: %s", folder, error.strerror)
    return data


def _keep(data: bytes, kept: Path) -> None:
    kept.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=".", dir=kept.parent)
    with os.fdopen(handle, "wb") as file:
        file.write(data)
    Path(name).rename(kept)


def _downloaded(base_model: str, revision: str, settings: Datasets) -> bytes:
    status, body = _get(f"/{quote(base_model)}/resolve/{quote(revision, safe='')}/{FILE}", settings)
    if status == 200:
        return body
    if status in (401, 403):
        raise _None(
            f"The model hub doesn't show the {FILE} of {base_model} to everybody: ask for access there, and set TRAINYARD_HF_TOKEN to a token that has it"
        )
    if status in (404, 410):
        raise _None(f"{base_model} has no {FILE} on the model hub")
    raise HubDown(f"the model hub ({settings.hf_endpoint}) answers {status}")


def _get(path: str, settings: Datasets) -> tuple[int, bytes]:
    """Redirects stay with the scheme they came from, and the token with the hub."""
    hub = settings.hf_endpoint.rstrip("/")
    url, until = hub + path, time.monotonic() + PATIENCE
    with urllib3.PoolManager(retries=False, cert_reqs="CERT_REQUIRED", ca_certs=certifi.where()) as http:
        for _ in range(REDIRECTS):
            ours = urlsplit(url)[:2] == urlsplit(hub)[:2]
            headers = {"Authorization": f"Bearer {settings.hf_token}"} if settings.hf_token and ours else {}
            try:
                answer = http.request("GET", url, headers=headers, redirect=False, preload_content=False, timeout=urllib3.Timeout(connect=5, read=10))
                with answer:
                    if answer.status not in (301, 302, 303, 307, 308):
                        return answer.status, _body(answer, until)
                    url = urljoin(url, answer.headers.get("location", ""))
            except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
                raise HubDown(f"the model hub ({hub}) does not answer: {type(error).__name__}") from error
            if urlsplit(url).scheme != urlsplit(hub).scheme:
                raise HubDown(f"the model hub ({hub}) sends elsewhere than it should")
    raise HubDown(f"the model hub ({hub}) sends from one address to another")


def _body(answer: urllib3.BaseHTTPResponse, until: float) -> bytes:
    """A byte now and then is no answer."""
    body = bytearray()
    for piece in answer.stream(256 * 1024, decode_content=True):
        body += piece
        if len(body) > LARGEST:
            raise _None(f"Its {FILE} on the model hub is larger than {LARGEST // 1024**2} MiB")
        if time.monotonic() > until:
            raise TimeoutError("too slow")
    return bytes(body)

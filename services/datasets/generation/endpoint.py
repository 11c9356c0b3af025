"""An OpenAI-compatible server: asked no more at once than it may be, waited for as long as it is away, never believed."""

import asyncio
import logging
import random
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Literal

import aiohttp
import certifi
import msgspec
from prometheus_client import Counter, Gauge

from libs.config import Datasets
from services.datasets.preparation import Hopeless

log = logging.getLogger(__name__)

PATIENCE = 600.0
"""Seconds for a whole request: a large model on a small machine takes minutes."""
CONNECT = 5.0
LARGEST = 1024 * 1024
"""Bytes of an answer: examples of a chunk are a few thousand."""
FIRST_DELAY, LONGEST_DELAY = 0.5, 30.0
LONGEST_ASKED = 3600.0
"""Seconds that a server may ask us to wait."""
TRIES = 3
"""Times that the same request may get rubbish."""
FAILURES = 5
"""Times that it may make a server fail that answers others."""
WORTH_TELLING = 5.0
"""Seconds that nobody gets an answer, after which whoever waits for examples hears of it."""

_answers = Counter("trainyard_llm_answers_total", "What became of requests to the language model", ["outcome"])
_waiting = Gauge("trainyard_llm_waiting", "Requests that wait for the language model's server to come back")


class Message(msgspec.Struct, frozen=True):
    role: Literal["system", "user"]
    content: str


class Refused(Exception):
    """The server won't answer this request, though it answers others. The reason is a code, the message says it in words."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


class _Away(Exception):
    """It didn't answer, and may later, at the earliest after so many seconds."""

    def __init__(self, why: str, *, after: float = 0.0, failed: bool = False) -> None:
        super().__init__(why)
        self.after = after
        self.failed = failed
        """It did something, and failed at it."""


class _Said(msgspec.Struct, frozen=True):
    content: str | None = None


class _Choice(msgspec.Struct, frozen=True):
    message: _Said


class _Completion(msgspec.Struct, frozen=True):
    choices: list[_Choice]


_completions = msgspec.json.Decoder(_Completion)


class Endpoint:
    """One in a process, for all of its jobs together."""

    def __init__(self, settings: Datasets, *, patience: float = PATIENCE, first_delay: float = FIRST_DELAY) -> None:
        self._url = _completions_url(settings.llm_url)
        self.shown = _without_password(self._url)
        self.model = settings.llm_model
        self.concurrency = settings.llm_concurrency
        self._key = settings.llm_key
        self._patience = patience
        self._first_delay = first_delay
        self._slots = asyncio.Semaphore(settings.llm_concurrency)
        self._plain: set[str] = set()
        """Models that are asked without anything that not every server knows."""
        self._understood = False
        self._not_before = 0.0
        self._away: tuple[float, datetime, str] | None = None
        """Since when nobody gets an answer, by two clocks, and why at first."""
        self._http: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        if self._http:
            await self._http.close()

    async def ask(self, messages: Sequence[Message], *, model: str, tokens: int, seed: int) -> str:
        """What the model says, however long that takes. Refused when it won't; Hopeless when nobody will ever get an answer there."""
        async with self._slots:
            return await self._ask(messages, model=model, tokens=tokens, seed=seed)

    def waiting(self) -> str:
        """For what, since when and why, in words; empty while somebody gets answers."""
        if self._away is None or asyncio.get_running_loop().time() - self._away[0] < WORTH_TELLING:
            return ""
        _, since, why = self._away
        return f"Waiting for the language model at {self.shown} since {since:%Y-%m-%d %H:%M:%S} UTC: {why[:300]}"

    async def _ask(self, messages: Sequence[Message], *, model: str, tokens: int, seed: int) -> str:
        delay, failures, rubbish = self._first_delay, 0, 0
        while True:
            await self._paused()
            try:
                content = await self._post(messages, model=model, tokens=tokens, seed=seed)
            except _Rubbish as why:
                self._away = None
                _answers.labels("rubbish").inc()
                rubbish += 1
                if rubbish >= TRIES:
                    raise self._given_up(why) from None
                log.warning("the language model's server answers rubbish: %s", why)
                await asyncio.sleep(delay * random.uniform(0.5, 1))
            except _Away as away:
                self._away = self._away or (asyncio.get_running_loop().time(), datetime.now(UTC), str(away))
                _answers.labels("away").inc()
                failures += away.failed
                if failures >= FAILURES and await self._answers_others(model):
                    raise Refused("model_failed", f"The language model's server fails at this text, and not at others: {away}") from None
                log.warning("waiting for the language model at %s: %s", self.shown, away)
                await self._wait(max(away.after, delay * random.uniform(0.5, 1)), for_all=bool(away.after))
            except Refused:
                self._away = None
                raise
            else:
                self._away = None
                _answers.labels("answered").inc()
                self._understood = True
                return content
            delay = min(LONGEST_DELAY, delay * 2)

    async def _answers_others(self, model: str) -> bool:
        try:
            await self._post([Message("user", "Answer with the word yes.")], model=model, tokens=8, seed=1)
        except (_Away, _Rubbish, Refused):
            return False
        return True

    async def _paused(self) -> None:
        now = asyncio.get_running_loop().time()
        if self._not_before > now:
            await self._wait(self._not_before - now)

    async def _wait(self, seconds: float, *, for_all: bool = False) -> None:
        """Whom the server told to come again later keeps the others from going there sooner."""
        if for_all:
            self._not_before = max(self._not_before, asyncio.get_running_loop().time() + seconds)
        with _waiting.track_inprogress():
            await asyncio.sleep(seconds)

    async def _post(self, messages: Sequence[Message], *, model: str, tokens: int, seed: int) -> str:
        """Servers differ in what they know: one that refuses our wishes is asked again without any."""
        bare: dict[str, Any] = {"model": model, "messages": [{"role": message.role, "content": message.content} for message in messages]}
        wishes = {"response_format": {"type": "json_object"}, "max_tokens": tokens, "seed": seed, "temperature": 0.7, "stream": False}
        if model in self._plain:
            return self._read(*await self._exchange(bare), model=model)
        status, body, after = await self._exchange(bare | wishes)
        if status not in (400, 422) or _is_about_model(body):
            return self._read(status, body, after, model=model)
        content = self._read(*await self._exchange(bare), model=model)
        self._plain.add(model)
        return content

    async def _exchange(self, body: dict[str, Any]) -> tuple[int, bytes, float]:
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self._key}"} if self._key else {})
        try:
            async with self._session().post(self._url, data=msgspec.json.encode(body), headers=headers, allow_redirects=False) as answer:
                after = _retry_after(answer.headers.get("Retry-After", ""), datetime.now(UTC))
                return answer.status, await _bounded(answer), after
        except TimeoutError:
            raise _Away(f"no answer within {self._patience:g} s") from None
        except (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError):
            raise Hopeless("llm_url_invalid", f"TRAINYARD_LLM_URL is no URL: {self.shown}") from None
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientPayloadError) as error:
            raise _Away(str(error) or type(error).__name__, failed=True) from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise _Away(str(error) or type(error).__name__) from error

    def _read(self, status: int, body: bytes, after: float, *, model: str) -> str:
        if status == 200:
            return _content(body)
        said = _said(body)
        if status in (401, 403):
            raise Hopeless("llm_key_refused", f"The language model's server at {self.shown} refuses the key in TRAINYARD_LLM_KEY ({status}): {said}")
        if status == 404 or _is_about_model(body):
            raise Hopeless(
                "llm_model_unknown",
                f"The language model's server at {self.shown} doesn't know the model {model!r} ({status}): {said} "
                "Name one that it has (ollama_model, or TRAINYARD_LLM_MODEL), or correct TRAINYARD_LLM_URL.",
            )
        if 300 <= status < 400:
            raise Hopeless("llm_redirects", f"What answers at {self.shown} sends us elsewhere ({status}); set TRAINYARD_LLM_URL to where the server is.")
        if status in (405, 410, 501):
            raise Hopeless("llm_not_understood", f"What answers at {self.shown} is no OpenAI-compatible server ({status}); correct TRAINYARD_LLM_URL.")
        if status in (408, 425, 429, 503) or status > 503:
            raise _Away(f"answered {status}: {said}", after=after)
        if status >= 500:
            raise _Away(f"answered {status}: {said}", after=after, failed=True)
        raise Refused("model_refused", f"The language model's server refused this text ({status}): {said}")

    def _given_up(self, why: "_Rubbish") -> Exception:
        if self._understood:
            return Refused("json_invalid", f"The language model's server answered with something else than a completion: {why}")
        return Hopeless("llm_not_understood", f"What answers at {self.shown} is no OpenAI-compatible server: {why} Correct TRAINYARD_LLM_URL.")

    def _session(self) -> aiohttp.ClientSession:
        if self._http is None:
            self._http = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, ssl=ssl.create_default_context(cafile=certifi.where())),
                timeout=aiohttp.ClientTimeout(total=self._patience, sock_connect=CONNECT),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={"User-Agent": "trainyard-datasets"},
            )
        return self._http


class _Rubbish(Exception):
    """It answered 200, but not what was asked for."""


@asynccontextmanager
async def opened(settings: Datasets) -> AsyncIterator[Endpoint | None]:
    """None where nobody named a server."""
    if not settings.llm_url:
        yield None
        return
    endpoint = Endpoint(settings)
    try:
        yield endpoint
    finally:
        await endpoint.close()


def _completions_url(url: str) -> str:
    """Of the server, of its API or of the very route: people set either."""
    url = url.strip().rstrip("/").removesuffix("/chat/completions").rstrip("/")
    host, _, path = url.partition("://")[2].partition("/")
    return f"{url}/chat/completions" if path or not host else f"{url}/v1/chat/completions"


def _without_password(url: str) -> str:
    """Fit for people's eyes."""
    scheme, _, rest = url.partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"


async def _bounded(answer: aiohttp.ClientResponse) -> bytes:
    body = bytearray()
    async for piece in answer.content.iter_any():
        body += piece
        if len(body) > LARGEST:
            answer.close()
            if answer.status == 200:
                raise _Rubbish(f"more than {LARGEST} bytes.")
            break
    return bytes(body)


def _content(body: bytes) -> str:
    try:
        completion = _completions.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise _Rubbish(f"{error}.") from None
    if not completion.choices:
        raise _Rubbish("no choices.")
    return completion.choices[0].message.content or ""


def _said(body: bytes) -> str:
    """The server's own words, fit to be part of a message that is stored."""
    try:
        said = msgspec.json.decode(body)
        error = said.get("error", said) if isinstance(said, dict) else said
        text = error.get("message", error) if isinstance(error, dict) else error
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        text = body[:2000].decode("utf-8", "replace")
    return " ".join(str(text).replace("\0", " ").encode("utf-8", "replace").decode().split())[:300] or "(nothing more)"


def _is_about_model(body: bytes) -> bool:
    """Some servers answer 400 for a model that they don't have."""
    said = body[:2000].lower()
    return b"model" in said and any(
        words in said
        for words in (
            b"model_not_found",
            b"not found",
            b"does not exist",
            b"doesn't exist",
            b"unknown model",
            b"invalid model",
            b"not a valid model",
            b"no such model",
        )
    )


def _retry_after(header: str, now: datetime) -> float:
    """Seconds, from either form that HTTP has; 0 when it says nothing that can be understood."""
    text = header.strip()
    try:
        seconds = float(text) if text.replace(".", "", 1).isdigit() else (parsedate_to_datetime(text) - now).total_seconds()
    except (ValueError, TypeError):
        return 0.0
    return min(max(0.0, seconds), LONGEST_ASKED)

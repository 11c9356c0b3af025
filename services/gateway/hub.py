"""What can be known of a base model before anybody loads it: from the model hub, from a folder, or because we built it. Only configurations are read."""

import asyncio
import json
import re
import struct
import time
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote, urljoin, urlsplit

import certifi
import msgspec
import urllib3
from msgspec import Meta

from libs import tiny
from libs.runtime.waiting import within
from services.gateway.domain.project import SHORTEST
from services.gateway.domain.vram import Shape

ID = re.compile(r"(?!.*(\.\.|--))[A-Za-z0-9_][A-Za-z0-9._-]{0,95}(/[A-Za-z0-9_][A-Za-z0-9._-]{0,95})?(?<!\.git)(?<![.-])")
PATIENCE = 20.0
"""Seconds for all that is asked of the hub about one model."""
LISTING, CONFIG, HEADER = 16 * 1024 * 1024, 1024 * 1024, 32 * 1024 * 1024
"""Most bytes of an answer, of a config.json or a model card, and of a weight file's header."""
TOKENIZERS = frozenset({"tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "sentencepiece.bpe.model", "tekken.json"})
"""One of these is what a tokenizer is made from."""
REDIRECTS = 4

Count = Annotated[int, Meta(ge=0, le=2**40)]


class NoSuchModel(Exception):
    """The hub, or the folder, doesn't have it."""


class NotAllowed(Exception):
    """It is there, but not for us; the message says what would help."""


class TokenRefused(NotAllowed):
    """The hub doesn't know who asks."""


class HubDown(Exception):
    """Nobody can tell now."""


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """`info` is what people see and what a project keeps. Without `shape` nobody can say what memory its training takes."""

    info: "Info"
    revision: str = ""
    shape: Shape | None = None


class Vram(msgspec.Struct, frozen=True, kw_only=True):
    """GB of a GPU, by method."""

    full: float
    lora: float
    qlora: float


class Info(msgspec.Struct, frozen=True, kw_only=True):
    """`warnings` say why a model that isn't valid can't be fine-tuned, and what else is worth knowing."""

    model_id: str
    model_type: str | None = None
    num_parameters: int | None = None
    estimated_vram_fp16_gb: float | None = None
    estimated_vram_4bit_gb: float | None = None
    estimated_training_vram_gb: Vram | None = None
    """All rows of a batch at once, with the hyperparameters of `estimated_for`."""
    least_training_vram_gb: Vram | None = None
    """One row at a time, with gradient_checkpointing: a smaller max_seq_length aside, less does not do."""
    estimated_for: dict[str, Any] = {}
    architecture: str | None = None
    vocab_size: int | None = None
    max_position_embeddings: int | None = None
    license: str | None = None
    valid: bool = True
    warnings: list[str] = []


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """Of a config.json what matters here."""

    architectures: list[str] | None = None
    model_type: str | None = None
    vocab_size: Count | None = None
    max_position_embeddings: Count | None = None
    n_positions: Count | None = None
    hidden_size: Count | None = None
    intermediate_size: Count | None = None
    num_hidden_layers: Count | None = None
    num_attention_heads: Annotated[int, Meta(ge=1, le=2**20)] | None = None
    num_key_value_heads: Annotated[int, Meta(ge=1, le=2**20)] | None = None
    head_dim: Count | None = None
    tie_word_embeddings: bool | None = None
    attention_bias: bool | None = None
    auto_map: Any = None
    quantization_config: Any = None


class Hub:
    def __init__(self, *, endpoint: str, token: str, roots: str) -> None:
        self.endpoint = endpoint.rstrip("/")
        self._token = token
        self._roots = [Path(root.strip()) for root in roots.split(",") if root.strip()]
        self._threads = ThreadPoolExecutor(4, thread_name_prefix="hub")
        self._http = urllib3.PoolManager(retries=False, cert_reqs="CERT_REQUIRED", ca_certs=certifi.where(), maxsize=4)

    async def describe(self, model_id: str) -> Model:
        """`model_id` has been looked at by `well_formed`."""
        if model_id == tiny.BASE:
            return judged(model_id, json.dumps(tiny.CONFIG).encode(), safetensors=True, license=tiny.LICENSE)
        look = self._from_folder if model_id.startswith("/") else self._from_hub
        try:
            return await within(2 * PATIENCE, asyncio.get_running_loop().run_in_executor(self._threads, look, model_id))
        except TimeoutError:
            raise HubDown(f"the model hub ({self.endpoint}) is too slow") from None

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._http.clear()

    def _from_hub(self, model_id: str) -> Model:
        until = time.monotonic() + PATIENCE
        listing = self._listing(model_id, until)
        if not re.fullmatch(r"[0-9a-f]{6,64}", listing.sha):
            raise HubDown(f"the model hub ({self.endpoint}) names no commit for '{model_id}'")
        names = [sibling.rfilename for sibling in listing.siblings]
        config = b""
        if "config.json" in names:
            status, config, headers = self._get(f"/{quote(model_id)}/resolve/{listing.sha}/config.json", most=CONFIG, until=until)
            if status in (401, 403):
                raise self._gated(model_id, status, headers)
            if status != 200:
                raise HubDown(f"the model hub ({self.endpoint}) answers {status}")
        known = listing.safetensors.total if listing.safetensors else None
        weights = any(name.endswith(".safetensors") for name in names)
        obstacles = _lacking(names)
        return judged(model_id, config, safetensors=weights, license=listing.license, parameters=known, revision=listing.sha, obstacles=obstacles)

    def _listing(self, model_id: str, until: float) -> "_Listing":
        status, body, headers = self._get(f"/api/models/{quote(model_id)}", most=LISTING, until=until)
        unknown = status == 404 or (
            status == 401 and (not self._token or headers.get("x-error-code") == "RepoNotFound")
        )  # without a token the hub says no more
        if unknown:
            raise NoSuchModel(model_id)
        if status in (401, 403):
            raise self._gated(model_id, status, headers)
        if status != 200:
            raise HubDown(f"the model hub ({self.endpoint}) answers {status}")
        try:
            return msgspec.json.decode(body, type=_Listing)
        except (msgspec.MsgspecError, RecursionError) as error:
            raise HubDown(f"the model hub ({self.endpoint}) answers something that is no model") from error

    def _gated(self, model_id: str, status: int, headers: Any) -> NotAllowed:
        if status == 401 and self._token and headers.get("x-error-code") != "GatedRepo":
            return TokenRefused("The model hub doesn't accept the token of TRAINYARD_HF_TOKEN")
        return NotAllowed(f"Model '{model_id}' is not open to everybody: ask for access on the hub, and set TRAINYARD_HF_TOKEN to a token that has it")

    def _get(self, path: str, *, most: int, until: float) -> tuple[int, bytes, Any]:
        """Redirects stay with the scheme they came from, and the token with the hub."""
        url = self.endpoint + path
        for _ in range(REDIRECTS):
            ours = urlsplit(url)[:2] == urlsplit(self.endpoint)[:2]
            headers = {"Authorization": f"Bearer {self._token}"} if self._token and ours else {}
            try:
                answer = self._http.request("GET", url, headers=headers, redirect=False, preload_content=False, timeout=_patience(until))
                with answer:
                    if answer.status in (301, 302, 303, 307, 308):
                        url = self._next(url, answer.headers.get("location", ""))
                        continue
                    return answer.status, _read(answer, most, until), answer.headers
            except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
                raise HubDown(f"the model hub ({self.endpoint}) does not answer") from error
        raise HubDown(f"the model hub ({self.endpoint}) sends from one address to another")

    def _next(self, url: str, location: str) -> str:
        target = urljoin(url, location)
        if urlsplit(target).scheme != urlsplit(self.endpoint).scheme:
            raise HubDown(f"the model hub ({self.endpoint}) sends elsewhere than it should")
        return target

    def _from_folder(self, path: str) -> Model:
        try:
            folder = self._folder(path)
            config = self._small(folder / "config.json")
            weights = [file for file in sorted(folder.glob("*.safetensors")) if file.is_file() and self._here(file)]
            obstacles = _lacking([file.name for file in folder.iterdir()])
            if _asks_for_code(self._small(folder / "tokenizer_config.json")):
                obstacles.append("Its tokenizer_config.json asks for code of its own (auto_map), which is never run")
            licence = _on_card(self._small(folder / "README.md"))
            return judged(path, config, safetensors=bool(weights), license=licence, parameters=_counted(weights), obstacles=obstacles)
        except (OSError, RuntimeError) as error:
            raise NoSuchModel(path) from error  # what can't be looked at is as good as not there, and no one is told which

    def _folder(self, path: str) -> Path:
        folder = Path(path).resolve(strict=True)
        if self._here(folder) and folder.is_dir():
            return folder
        raise NoSuchModel(path)

    def _small(self, file: Path) -> bytes:
        return file.read_bytes() if file.is_file() and self._here(file) and file.stat().st_size <= CONFIG else b""

    def _here(self, path: Path) -> bool:
        """Links may lead from one configured root to another, and nowhere else."""
        whole = path.resolve(strict=True)
        if any(whole.is_relative_to(root.resolve()) for root in self._roots):
            return True
        raise NoSuchModel(str(path))


def well_formed(model_id: str) -> bool:
    """An id of the hub, or the path of a folder."""
    return ID.fullmatch(model_id) is not None or (model_id.startswith("/") and model_id.isprintable())


def _lacking(names: Collection[str]) -> list[str]:
    """What the names of its files say already."""
    lacking: list[str] = []
    if "config.json" in names and not TOKENIZERS.intersection(names):
        lacking.append("It has no tokenizer: its files must be beside the model's")
    if "config.json" in names and "adapter_config.json" in names:
        lacking.append("It has an adapter in it (adapter_config.json): take the base model alone, or one that the adapter was merged into")
    return lacking


def _asks_for_code(tokenizer_config: bytes) -> bool:
    try:
        return bool(tokenizer_config and msgspec.json.decode(tokenizer_config, type=Config).auto_map)
    except (msgspec.MsgspecError, RecursionError):
        return False  # who loads it will say what is the matter


def _on_card(card: bytes) -> str | None:
    """The licence that the head of a model card names."""
    head = re.match(r"---\r?\n(.*?)\r?\n---", card.decode(errors="replace"), re.DOTALL)
    named = dict(re.findall(r"^(license|license_name):[ \t]*[\"']?([^\"'#\r\n]+)", head[1], re.MULTILINE)) if head else {}
    name = named.get("license_name") if named.get("license", "").strip() == "other" else named.get("license")
    return _short(name.strip()) if name else None


class _File(msgspec.Struct, frozen=True):
    rfilename: str = ""


class _Weights(msgspec.Struct, frozen=True):
    total: Count = 0


class _Listing(msgspec.Struct, frozen=True, rename={"card": "cardData"}):
    sha: str = ""
    siblings: list[_File] = []
    safetensors: _Weights | None = None
    card: dict[str, Any] | None = None
    tags: list[str] = []

    @property
    def license(self) -> str | None:
        """As the card has it; else as the hub has it among its tags."""
        named = (self.card or {}).get("license")
        name = (self.card or {}).get("license_name", named) if named == "other" else named
        if isinstance(name, list):  # cards are people's work
            name = ", ".join(str(one) for one in name)
        tagged = next((tag.removeprefix("license:") for tag in self.tags if tag.startswith("license:")), None)
        return _short(name if isinstance(name, str) else tagged)


def _patience(until: float) -> urllib3.Timeout:
    left = until - time.monotonic()
    if left <= 0:
        raise TimeoutError("too slow")
    return urllib3.Timeout(connect=min(5.0, left), read=min(10.0, left))


def _read(answer: urllib3.BaseHTTPResponse, most: int, until: float) -> bytes:
    """A byte now and then is no answer either."""
    body = bytearray()
    for chunk in answer.stream(64 * 1024, decode_content=True):
        body += chunk
        if len(body) > most:
            raise ValueError(f"more than {most} bytes")
        _patience(until)
    return bytes(body)


def judged(
    model_id: str,
    config_json: bytes,
    *,
    safetensors: bool,
    license: str | None,
    parameters: int | None = None,
    revision: str = "",
    obstacles: Sequence[str] = (),
) -> Model:
    """What is known of a model by its configuration. `obstacles` are those that were found elsewhere."""
    try:
        config = msgspec.json.decode(config_json, type=Config) if config_json else Config()
        found = [] if config_json else ["It has no config.json: it is no model of the transformers library"]
    except (msgspec.MsgspecError, RecursionError):
        config, found = Config(), ["Its config.json can't be understood"]
    if config_json:
        found += _obstacles(config)
    if not safetensors:
        found.append("It has no safetensors weights, and pickled ones are never loaded: they can run any code")
    obstacles = [*obstacles, *found]
    count = parameters or _computed(config)
    notes = [] if count else ["Its number of parameters is not known"]
    info = Info(
        model_id=model_id,
        model_type=_short(config.model_type),
        num_parameters=count,
        estimated_vram_fp16_gb=round(2 * count / 1e9, 2) if count else None,
        estimated_vram_4bit_gb=round(0.6875 * count / 1e9, 2) if count else None,
        architecture=_short(config.architectures[0]) if config.architectures else None,
        vocab_size=config.vocab_size,
        max_position_embeddings=config.max_position_embeddings or config.n_positions,
        license=license,
        valid=not obstacles,
        warnings=obstacles + notes,
    )
    return Model(info=info, revision=revision, shape=shape_of(config) if count else None)


def _obstacles(config: Config) -> list[str]:
    found: list[str] = []
    architecture = config.architectures[0] if config.architectures else ""
    if not architecture.endswith(("ForCausalLM", "LMHeadModel")):
        found.append(f"It is no causal language model ({_short(architecture) or 'its config.json names no architecture'})")
    if config.auto_map:
        found.append("Its config.json asks for code of its own (auto_map), which is never run")
    if config.quantization_config:
        found.append("Its weights are quantised already: take the model that they were made of")
    if (context := config.max_position_embeddings or config.n_positions) and context < SHORTEST:
        found.append(f"It reads no more than {context} tokens at once: a row has {SHORTEST} at least")
    return found


def _short(text: str | None) -> str | None:
    """What people have written somewhere; a NUL could not be kept."""
    return text.replace("\0", "")[:100] or None if text else None


def _counted(weights: list[Path]) -> int | None:
    """As the headers of the weight files say."""
    total = 0
    for file in weights:
        with file.open("rb") as opened:
            prefix = opened.read(8)
            size = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else HEADER + 1
            header = opened.read(size) if size <= HEADER else b""
        try:
            tensors = msgspec.json.decode(header, type=dict[str, _Tensor])
        except (msgspec.MsgspecError, RecursionError):
            return None
        for tensor in tensors.values():
            numbers = 1 if tensor.shape is not None else 0
            for size in tensor.shape or []:
                numbers *= size
            total += numbers
    return total if 0 < total < 2**40 else None


class _Tensor(msgspec.Struct, frozen=True):
    """Of a header's entry; `__metadata__` has no shape."""

    shape: list[Count] | None = None


LLAMA_LIKE = frozenset({"llama", "mistral", "qwen2", "qwen3", "phi3"})


def shape_of(config: Config) -> Shape | None:
    h, i, layers, heads, v = config.hidden_size, config.intermediate_size, config.num_hidden_layers, config.num_attention_heads, config.vocab_size
    if config.model_type not in LLAMA_LIKE or not (h and i and layers and heads and v):
        return None
    d = config.head_dim or h // heads
    queries, keys = heads * d, (config.num_key_value_heads or heads) * d
    norms = 2 * h + (2 * d if config.model_type == "qwen3" else 0)
    biases = queries + 2 * keys if config.model_type == "qwen2" else queries + 2 * keys + h if config.attention_bias else 0
    return Shape(
        hidden=h,
        intermediate=i,
        keys=keys,
        layers=layers,
        vocabulary=v,
        linears=[(h, queries), (h, keys), (h, keys), (queries, h), (h, i), (h, i), (i, h)],
        other=v * h * (1 if config.tie_word_embeddings else 2) + layers * (norms + biases) + h,
    )


def _computed(config: Config) -> int | None:
    shape = shape_of(config)
    count = shape.linear + shape.other if shape else 0
    return count if 0 < count < 2**40 else None

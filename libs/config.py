"""Settings: environment variables TRAINYARD_*, or a .env beside you, read once when a process starts."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta

PREFIX = "TRAINYARD_"
KNOWN_ELSEWHERE = {"hf_endpoint": "HF_ENDPOINT", "hf_token": "HF_TOKEN"}
"""Names that people have set for other tools already; ours go first."""


class Refused(Exception):
    """A setting is missing or wrong. The message names it and says what would be right."""


class Service(msgspec.Struct, frozen=True, kw_only=True):
    """What every process of the platform needs to take part."""

    nats_url: Annotated[str, Meta(description="The bus, with the service's own user: `nats://user:password@host:4222`, several servers divided by commas.")]
    s3_endpoint: Annotated[str, Meta(description="Object store: `http://host:port`; https where it has it.")]
    s3_access_key: Annotated[str, Meta(description="Key of the object store.")]
    s3_secret_key: Annotated[str, Meta(description="Its secret.")]
    s3_bucket: Annotated[str, Meta(description="Bucket that holds uploads, parts and artifacts; made by `infra`, never by a service.")] = "trainyard"
    s3_region: Annotated[str, Meta(description="Region of the bucket.")] = "us-east-1"
    s3_local_root: Annotated[
        str, Meta(description="Folder where an embedded object store keeps its buckets. When set, each object is fsynced there before a fact may refer to it.")
    ] = ""
    health_port: Annotated[
        int, Meta(description="Port for /livez, /readyz and /metrics of a service that has no other HTTP; 0 turns it off.", ge=0, le=65535)
    ] = 0
    log_level: Annotated[Literal["debug", "info", "warning", "error"], Meta(description="Least level that is written to the log (JSON lines on stderr).")] = (
        "info"
    )
    trace_ratio: Annotated[
        float,
        Meta(description="Share of requests that are traced when the caller did not decide; exported when OTEL_EXPORTER_OTLP_ENDPOINT is set.", ge=0, le=1),
    ] = 0.05


class Gateway(Service, frozen=True, kw_only=True):
    """What the gateway needs besides."""

    database_url: Annotated[str, Meta(description="PostgreSQL for the read models: `postgresql://user:password@host:5432/database`.")]
    host: Annotated[str, Meta(description="Address to listen on. Anything but a loopback address needs AUTH=jwt.")] = "127.0.0.1"
    port: Annotated[int, Meta(description="Port to listen on.", ge=0, le=65535)] = 8000
    auth: Annotated[
        Literal["local", "jwt"], Meta(description="`local`: whoever reaches the loopback address is the owner `local`. `jwt`: everyone needs a token.")
    ] = "local"
    secret: Annotated[
        str,
        Meta(
            description="Signs access tokens: at least 32 bytes, the same for all gateways; who knows it can be anybody. "
            "AUTH=jwt needs it; without it the tokens of local mode end with the process."
        ),
    ] = ""
    nats_issuer_seed: Annotated[
        str,
        Meta(
            description="Seed (`SA…`) of the key with which gateways let event consumers onto the bus, the same for all gateways; `python -m infra.nats.issuer` "
            "makes one, and the bus is told its public half. Empty: there are no bus credentials."
        ),
    ] = ""
    nats_public_url: Annotated[
        str, Meta(description="Addresses of the bus for event consumers, divided by commas, like `tls://bus.example.org:4222`. Empty: those of NATS_URL.")
    ] = ""
    egress_allow: Annotated[
        str,
        Meta(
            description="Networks, divided by commas (`10.0.0.0/8,127.0.0.1/32`), that webhooks may be sent to although they are not public. "
            "All others that are not public are refused."
        ),
    ] = ""
    registration: Annotated[Literal["open", "closed"], Meta(description="`closed`: only `python -m services.gateway users add` makes users.")] = "open"
    new_user_credits: Annotated[int, Meta(description="Credits that a new user gets when registering.", ge=0, le=1_000_000)] = 100
    prices: Annotated[
        str,
        Meta(
            description="What starts cost, in credits, divided by commas: `family=credits`, or `family:steps=credits` for runs of up to so many steps. "
            "The families are autotrainx, deep-learning-platform, datagen, lora-training and finetuneflow; one that isn't named costs nothing."
        ),
    ] = "lora-training:600=10,lora-training:1200=20,lora-training:2000=35"
    login_attempts: Annotated[
        int,
        Meta(
            description="Passwords that may be tried for one name within a minute, at one gateway; six times as many from one address. "
            "Behind a proxy everybody has the proxy's address: raise it there.",
            ge=1,
        ),
    ] = 10
    webhooks_per_workspace: Annotated[int, Meta(description="Webhook endpoints that a workspace may have.", ge=1)] = 100
    streams_per_user: Annotated[
        int, Meta(description="Live streams and WebSockets that a user may have open at one gateway; the owner of local mode has no limit.", ge=1)
    ] = 100
    access_check_seconds: Annotated[
        float, Meta(description="How often an open stream is looked at for whether its token is good still, and its workspaces open.", gt=0, le=40)
    ] = 30.0
    rate_limits: Annotated[
        float,
        Meta(
            description="Multiplies every limit on requests ([limits.md](limits.md)); 0 turns them off. They hold with AUTH=jwt: the owner of a machine has none.",
            ge=0,
            le=1_000_000,
        ),
    ] = 1.0
    anonymous_per_hour: Annotated[
        int,
        Meta(
            description="Requests without a valid token that one address may make within an hour, logging in and registering among them. "
            "Behind a proxy everybody has the proxy's address: raise it there.",
            ge=1,
        ),
    ] = 100
    cors_origins: Annotated[
        str, Meta(description="Origins, divided by commas, whose pages may call the API. Empty: any loopback origin in local mode, none else.")
    ] = ""
    max_file_mb: Annotated[int, Meta(description="Largest file of one upload, in MB.", ge=1)] = 50
    max_project_mb: Annotated[int, Meta(description="Largest sum of a project's files, in MB.", ge=1)] = 500
    max_dataset_mb: Annotated[int, Meta(description="Largest table or ZIP of images that one data set may be, in MB.", ge=1)] = 2048
    hf_endpoint: Annotated[str, Meta(description="The model hub that base models are looked up at. HF_ENDPOINT is understood too.")] = "https://huggingface.co"
    hf_token: Annotated[str, Meta(description="Token of the model hub, for models behind a licence. HF_TOKEN is understood too.")] = ""
    source_roots: Annotated[str, Meta(description="Folders, divided by commas, under which models may lie that are named by their path.")] = ""
    smoke: Annotated[
        bool, Meta(description="Every base model is replaced by a tiny random one: all of the path runs in seconds on a CPU, the weights are worthless.")
    ] = False
    sweep_after_hours: Annotated[float, Meta(description="Objects that no fact refers to are removed when they are this old.", gt=0)] = 24.0


class Datasets(Service, frozen=True, kw_only=True):
    """What the datasets service needs besides."""

    llm_url: Annotated[
        str,
        Meta(
            description="An OpenAI-compatible server that writes examples, such as Ollama's `http://127.0.0.1:11434/v1`. "
            "Empty: examples are put together from the documents' own sentences.",
            pattern=r"^$|^https?://[^\s/]",
        ),
    ] = ""
    llm_model: Annotated[str, Meta(description="The model that is asked there where a request names none.")] = ""
    llm_key: Annotated[str, Meta(description="The key that is sent there as bearer token.")] = ""
    llm_concurrency: Annotated[int, Meta(description="Requests at the same time to that server, for all jobs of one process together.", ge=1, le=1024)] = 4
    tokenizers_folder: Annotated[str, Meta(description="Folder where the tokenizers of base models are kept between jobs.", min_length=1)] = (
        "~/.cache/trainyard/tokenizers"
    )
    hf_endpoint: Annotated[str, Meta(description="The model hub that tokenizers are downloaded from. HF_ENDPOINT is understood too.")] = (
        "https://huggingface.co"
    )
    hf_token: Annotated[str, Meta(description="Token of the model hub, for models behind a licence. HF_TOKEN is understood too.")] = ""
    source_roots: Annotated[str, Meta(description="Folders, divided by commas, under which models may lie that are named by their path.")] = ""
    max_pages: Annotated[int, Meta(description="Most pages of one PDF. One with more is refused as a whole, with its reason.", ge=1, le=1_000_000)] = 5_000
    max_columns: Annotated[int, Meta(description="Most columns of a table. One with more is refused, with its reason.", ge=2, le=20_000)] = 10_000
    max_rows: Annotated[int, Meta(description="Most rows of a table. One with more is refused, with its reason.", ge=2, le=1_000_000_000)] = 20_000_000
    max_images: Annotated[int, Meta(description="Most files in a ZIP of images. One with more is refused, with its reason.", ge=2, le=1_000_000)] = 100_000


class Training(Service, frozen=True, kw_only=True):
    """What the training service needs besides."""

    workers: Annotated[int, Meta(description="Runs at the same time. 0: one for each GPU that can be used, else one.", ge=0, le=64)] = 0
    threads: Annotated[int, Meta(description="CPU threads of one run. 0: its share of the cores, less one for everything else.", ge=0, le=512)] = 0
    runs_folder: Annotated[str, Meta(description="Folder for running trainings: snapshots, checkpoints on their way to the object store.", min_length=1)] = (
        "~/.cache/trainyard/runs"
    )
    models_folder: Annotated[str, Meta(description="Folder where downloaded base models are kept between runs.", min_length=1)] = "~/.cache/trainyard/models"
    predict_memory_mb: Annotated[
        int, Meta(description="Memory for models that predict, in MB. Those that were asked for last are kept, and one that alone needs more is refused.", ge=1)
    ] = 1024
    predict_threads: Annotated[int, Meta(description="Predictions that are computed at the same time, one thread each.", ge=1, le=256)] = 2
    hf_endpoint: Annotated[str, Meta(description="The model hub that base models are downloaded from. HF_ENDPOINT is understood too.")] = (
        "https://huggingface.co"
    )
    hf_token: Annotated[str, Meta(description="Token of the model hub, for models behind a licence. HF_TOKEN is understood too.")] = ""


S = TypeVar("S", bound=msgspec.Struct)


def load(kind: type[S], environ: Mapping[str, str] | None = None, dotenv: Path = Path(".env")) -> S:
    """The environment wins over .env; whatever is unset keeps its default."""
    values = {**_dotenv(dotenv), **(os.environ if environ is None else environ)}
    fields = {field.name: field for field in msgspec.structs.fields(kind)}
    found: dict[str, Any] = {}
    for name in fields:
        value = values.get(PREFIX + name.upper()) or values.get(KNOWN_ELSEWHERE.get(name, ""))
        if value is not None and value != "":
            found[name] = value
    try:
        return msgspec.convert(found, kind, strict=False)
    except msgspec.ValidationError as error:
        raise Refused(_worded(error)) from error


def describe(kind: type[msgspec.Struct]) -> list[tuple[str, str, str, str]]:
    """(variable, type, default, meaning) of each setting, for docs/settings.md."""
    schema = msgspec.json.schema(kind)["$defs"][kind.__name__]
    return [
        (
            PREFIX + name.upper(),
            " \\| ".join(map(str, field["enum"])) if "enum" in field else str(field.get("type", "")),
            "required" if name in schema.get("required", []) else str(field.get("default", "")),
            str(field.get("description", "")),
        )
        for name, field in schema["properties"].items()
    ]


def _worded(error: msgspec.ValidationError) -> str:
    text = str(error)
    if "missing required field `" in text:
        name = text.split("`")[1]
        return f"{PREFIX}{name.upper()} is not set. `make up` sets it for the embedded servers; docs/settings.md lists all."
    if " - at `$." in text:
        problem, _, path = text.partition(" - at `$.")
        return f"{PREFIX}{path.rstrip('`').upper()}: {problem}"
    return text


def _dotenv(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    pairs = (line.split("=", 1) for line in path.read_text().splitlines() if "=" in line and not line.lstrip().startswith("#"))
    return {key.strip().removeprefix("export "): value.strip().strip("'\"") for key, value in pairs}

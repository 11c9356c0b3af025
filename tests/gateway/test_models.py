"""A base model is looked up, judged and remembered: at a hub that may answer anything, in folders, or at once for the one we build."""

import json
import os
import struct
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from nats.aio.msg import Msg

from infra.embedded import Process, Servers
from libs.config import Gateway, load
from libs.events.log import EventLog
from libs.runtime import bus
from services.gateway import hub as hub_module
from services.gateway.hub import Hub, HubDown, NoSuchModel, NotAllowed
from services.training.hardware import Gpu, Machine, Usable, report
from tests.kit.gateway import KEPT, client, footprint, running

SHA = "0123456789abcdef0123456789abcdef01234567"
LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": False,
}
"""The document's example, Llama 3.1 8B."""
TOKEN = "hf_secretsecretsecret"


@dataclass
class FakeHub:
    url: str = ""
    answers: dict[str, tuple[int, dict[str, str], bytes]] = field(default_factory=dict)
    asked: list[tuple[str, str, str]] = field(default_factory=list)
    """Path, host and authorization of each request."""

    def model(self, id: str, config: Any = LLAMA, **listing: Any) -> None:
        self.listing(id, **listing)
        self.say(f"/{id}/resolve/{SHA}/config.json", config if isinstance(config, bytes) else json.dumps(config).encode())

    def listing(self, id: str, *files: str, **more: Any) -> None:
        names = files or ("config.json", "model.safetensors", "tokenizer.json", "README.md")
        listing = {"id": id, "sha": SHA, "siblings": [{"rfilename": name} for name in names], "cardData": {"license": "llama3.1"}, **more}
        self.say(f"/api/models/{id}", json.dumps(listing).encode())

    def say(self, path: str, body: bytes = b"", *, status: int = 200, **headers: str) -> None:
        self.answers[path] = (status, {name.replace("_", "-"): value for name, value in headers.items()}, body)


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    hub = FakeHub()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            hub.asked.append((self.path, self.headers["Host"], self.headers.get("Authorization", "")))
            status, headers, body = hub.answers.get(self.path, (404, {}, b'{"error": "Repository not found"}'))
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", headers.get("Content-Length", str(len(body))))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(scope="module")
def the_hub() -> Iterator[FakeHub]:
    with fake_hub() as hub:
        yield hub


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def its_gateway(servers: Servers, the_hub: FakeHub, folders: Path) -> Iterator[Process]:
    environ = {"TRAINYARD_HF_ENDPOINT": the_hub.url, "TRAINYARD_HF_TOKEN": TOKEN, "TRAINYARD_SOURCE_ROOTS": str(folders)}
    with running(servers, label="with-a-hub", environ=environ) as process:
        yield process


@pytest.fixture(scope="module")
async def api(its_gateway: Process) -> AsyncIterator[httpx.AsyncClient]:
    async with client(its_gateway) as api:
        yield api


@pytest.fixture
async def project(api: httpx.AsyncClient) -> str:
    return (await api.post("/projects", json={"name": "test"})).json()["id"]


@pytest.fixture
def hub(the_hub: FakeHub) -> Iterator[Hub]:
    """In this process, without a token."""
    hub = Hub(endpoint=the_hub.url, token="", roots="")
    yield hub
    hub.close()


async def resolve(api: httpx.AsyncClient, project: str, model_id: Any) -> httpx.Response:
    return await api.post(f"/projects/{project}/model/resolve", json={"model_id": model_id})


# ---- over HTTP


async def test_the_documents_example_is_answered_as_the_document_says(api: httpx.AsyncClient, the_hub: FakeHub, project: str):
    the_hub.model("meta-llama/Llama-3.1-8B", safetensors={"parameters": {"BF16": 8030261248}, "total": 8030261248})

    answer = await resolve(api, project, "meta-llama/Llama-3.1-8B")

    told = answer.json()
    assert answer.status_code == 200
    assert {name: value for name, value in told.items() if name not in ("estimated_training_vram_gb", "least_training_vram_gb", "estimated_for")} == {
        "model_id": "meta-llama/Llama-3.1-8B",
        "model_type": "llama",
        "num_parameters": 8030261248,
        "estimated_vram_fp16_gb": 16.06,
        "estimated_vram_4bit_gb": 5.52,
        "architecture": "LlamaForCausalLM",
        "vocab_size": 128256,
        "max_position_embeddings": 131072,
        "license": "llama3.1",
        "valid": True,
        "warnings": [],
        "revision": SHA,
        "hardware": None,
    }
    need, least = told["estimated_training_vram_gb"], told["least_training_vram_gb"]
    assert 8 < least["qlora"] < 11 < 17 < least["lora"] < 20 < 8.03 * 18 < least["full"] < 160
    assert all(need[method] > least[method] for method in ("full", "lora", "qlora"))
    assert told["estimated_for"]["per_device_batch_size"] == 4


async def test_memory_is_estimated_for_what_would_be_started(api: httpx.AsyncClient, the_hub: FakeHub, project: str):
    the_hub.model("meta-llama/Llama-3.1-8B")
    asked = {"model_id": "meta-llama/Llama-3.1-8B"}
    await api.patch(f"/projects/{project}", json={"config": {"max_seq_length": 512}})

    usual, tight, small = [
        (await api.post(f"/projects/{project}/model/resolve", json={**asked, **more})).json()
        for more in ({}, {"preset": "qlora-tight"}, {"preset": "qlora-tight", "hyperparams": {"max_length": 256, "rank": 4}})
    ]

    assert usual["estimated_for"] == {
        "optimizer": "adamw",
        "per_device_batch_size": 4,
        "max_seq_length": 512,
        "lora_r": 16,
        "lora_dropout": 0.0,
        "gradient_checkpointing": False,
    }
    assert (tight["estimated_for"]["max_seq_length"], tight["estimated_for"]["optimizer"]) == (1024, "paged_adamw_8bit")
    assert (small["estimated_for"]["max_seq_length"], small["estimated_for"]["lora_r"]) == (256, 4)
    assert small["estimated_training_vram_gb"]["qlora"] < tight["estimated_training_vram_gb"]["qlora"] < usual["estimated_training_vram_gb"]["qlora"]
    assert tight["estimated_training_vram_gb"] == tight["least_training_vram_gb"]
    refused = await api.post(f"/projects/{project}/model/resolve", json={**asked, "hyperparams": {"rank": 0}})
    assert (refused.status_code, refused.json()["context"]["errors"][0]["field"]) == (422, "hyperparams.rank")


async def test_where_training_runs_on_a_gpu_it_is_said_what_fits(api: httpx.AsyncClient, the_hub: FakeHub, servers: Servers, project: str):
    """A hint, no refusal."""
    the_hub.model("meta-llama/Llama-3.1-8B")
    answer = report(Machine(gpus=[Gpu(name="NVIDIA RTX 4090", uuid="GPU-1", total=24 * 1024**3, free=23 * 1024**3)]), Usable(cuda=True, bnb=True), "2.13.0")
    nc = await bus.connect(servers.nats_url("training"), name="training")

    async def said(msg: Msg) -> None:
        await msg.respond(json.dumps(answer).encode())

    await nc.subscribe("ask.hardware", cb=said)
    await nc.flush()
    try:
        told = (await resolve(api, project, "meta-llama/Llama-3.1-8B")).json()
    finally:
        await nc.close()

    assert (told["valid"], told["warnings"]) == (True, ["full would not fit into the 24 GB of NVIDIA RTX 4090"])
    fit = {"full": "no", "lora": "smaller", "qlora": "smaller"}
    assert told["hardware"] == {"gpu_name": "NVIDIA RTX 4090", "vram_total_gb": 24.0, **fit}
    assert (await api.get(f"/projects/{project}")).json()["model_info"]["warnings"] == []


async def test_a_resolved_model_belongs_to_the_project(api: httpx.AsyncClient, project: str):
    before = (await api.get(f"/projects/{project}")).json()

    told = (await resolve(api, project, "trainyard/tiny-llama")).json()

    after = (await api.get(f"/projects/{project}")).json()
    listed = next(item for item in (await api.get("/projects")).json()["items"] if item["id"] == project)
    assert (before["base_model_id"], before["model_info"]) == (None, None)
    assert (after["base_model_id"], listed["base_model_id"]) == ("trainyard/tiny-llama", "trainyard/tiny-llama")
    assert after["model_info"] == {name: value for name, value in told.items() if name not in ("revision", "hardware")}
    assert (told["num_parameters"], told["valid"], told["architecture"]) == (125248, True, "LlamaForCausalLM")


async def test_the_same_model_again_changes_nothing(api: httpx.AsyncClient, servers: Servers, log: EventLog, project: str):
    first = await resolve(api, project, "trainyard/tiny-llama")
    before = await footprint(log, servers)

    again = await resolve(api, project, "trainyard/tiny-llama")

    assert (again.status_code, again.json(), again.headers["etag"]) == (200, first.json(), first.headers["etag"])
    assert await footprint(log, servers) == before


async def test_a_model_that_the_hub_does_not_have_is_a_404_in_the_documents_words(api: httpx.AsyncClient, servers: Servers, log: EventLog, project: str):
    before = await footprint(log, servers)

    answer = await resolve(api, project, "nobody/nothing")

    assert (answer.status_code, answer.json()["detail"]) == (404, "Model 'nobody/nothing' not found on HuggingFace Hub")
    assert answer.json()["error_code"] == "MODEL_NOT_FOUND"
    assert "TRAINYARD_HF_TOKEN" in answer.json()["context"]["hint"]
    assert set(answer.json()) == KEPT
    assert await footprint(log, servers) == before


async def test_a_hub_that_is_down_is_never_a_404(api: httpx.AsyncClient, the_hub: FakeHub, servers: Servers, log: EventLog, project: str):
    the_hub.say("/api/models/any/model", b"maintenance", status=503)
    before = await footprint(log, servers)

    answer = await resolve(api, project, "any/model")

    assert (answer.status_code, answer.json()["error_code"], answer.json()["context"]) == (503, "SERVICE_UNAVAILABLE", {"part": "the model hub"})
    assert "model hub" in answer.json()["detail"]
    assert "retry-after" in answer.headers
    assert await footprint(log, servers) == before


async def test_a_token_that_the_hub_refuses_is_told_from_a_model_that_is_not_open(api: httpx.AsyncClient, the_hub: FakeHub, project: str):
    the_hub.say("/api/models/any/model", status=401)

    answer = await resolve(api, project, "any/model")

    assert (answer.status_code, answer.json()["error_code"]) == (400, "HUB_TOKEN_REFUSED")


async def test_a_model_behind_a_licence_is_refused_with_what_helps(api: httpx.AsyncClient, the_hub: FakeHub, project: str):
    the_hub.model("gated/llama")
    the_hub.say(f"/gated/llama/resolve/{SHA}/config.json", status=403, X_Error_Code="GatedRepo")

    answer = await resolve(api, project, "gated/llama")

    assert (answer.status_code, answer.json()["error_code"]) == (400, "MODEL_NOT_ACCESSIBLE")
    assert "TRAINYARD_HF_TOKEN" in answer.json()["detail"]


async def test_a_model_that_cannot_be_trained_is_remembered_with_the_reason_and_not_started(api: httpx.AsyncClient, the_hub: FakeHub, project: str):
    the_hub.model("some/pickle")
    the_hub.listing("some/pickle", "config.json", "tokenizer.json", "pytorch_model.bin")
    rows = b'{"instruction": "a", "output": "b"}\n'
    await api.post(f"/projects/{project}/files/upload", files={"files": ("a.jsonl", rows)}, data={"kind": "dataset_upload"})

    told = (await resolve(api, project, "some/pickle")).json()
    refused = await api.post(f"/projects/{project}/train/start", json={})

    assert told["valid"] is False
    assert (await api.get(f"/projects/{project}")).json()["model_info"]["warnings"] == told["warnings"]
    assert (refused.status_code, refused.json()["error_code"]) == (400, "MODEL_NOT_USABLE")
    assert refused.json()["detail"] == f"'some/pickle' can't be fine-tuned: {told['warnings'][0]}"


@pytest.mark.parametrize(
    "oddity",
    [
        {"max_position_embeddings": 1},
        {"model_type": "llama\0"},
        {"architectures": ["Llama\0ForCausalLM"]},
        {"hidden_size": 2**40, "num_hidden_layers": 2**40, "intermediate_size": 2**40, "vocab_size": 2**40},
        {"num_hidden_layers": 10**30},
        {"num_hidden_layers": -1},
        {"head_dim": 0, "num_attention_heads": 2**20},
    ],
    ids=["short", "nul", "nul-inside", "vast", "vaster", "negative", "headless"],
)
async def test_whatever_a_configuration_says_it_is_answered(api: httpx.AsyncClient, the_hub: FakeHub, project: str, oddity: dict[str, Any]):
    card = {"license": "other", "license_name": "mine\0"}
    the_hub.model("some/oddity", LLAMA | oddity, cardData=card, tags=["license:\0"], safetensors={"total": 8_000_000_000})

    answer = await resolve(api, project, "some/oddity")

    assert answer.status_code == 200, answer.text
    assert (await api.get(f"/projects/{project}")).json()["model_info"]["model_id"] == "some/oddity"


async def test_the_token_goes_to_the_hub_only_and_into_no_log(api: httpx.AsyncClient, the_hub: FakeHub, its_gateway: Process, project: str):
    the_hub.model("moved/llama")
    elsewhere = the_hub.url.replace("127.0.0.1", "localhost")
    the_hub.say(f"/moved/llama/resolve/{SHA}/config.json", status=307, Location=f"{elsewhere}/cdn/config.json")
    the_hub.say("/cdn/config.json", json.dumps(LLAMA).encode())
    the_hub.asked.clear()

    answer = await resolve(api, project, "moved/llama")

    assert answer.json()["valid"] is True
    assert [(path, token) for path, _, token in the_hub.asked] == [
        ("/api/models/moved/llama", f"Bearer {TOKEN}"),
        (f"/moved/llama/resolve/{SHA}/config.json", f"Bearer {TOKEN}"),
        ("/cdn/config.json", ""),
    ]
    assert TOKEN not in its_gateway.log.read_text()


NO_IDS = [
    "",
    " ",
    "a b",
    "..",
    "a/../b",
    "a/b/c",
    "a/",
    "a//b",
    "-a/b",
    "a/b.git",
    "a\nb",
    "a/b\n",
    "\0",
    "é/è",
    "http://hub/a",
    "file:///etc",
    "a?b",
    "a#b",
    "%2e/a",
]


@pytest.mark.parametrize("id", [*NO_IDS, "x" * 301, 1, None, [], {}])
async def test_what_is_no_id_is_refused_before_anybody_is_asked(
    api: httpx.AsyncClient, the_hub: FakeHub, servers: Servers, log: EventLog, project: str, id: Any
):
    before = await footprint(log, servers)
    the_hub.asked.clear()

    answer = await resolve(api, project, id)

    assert (answer.status_code, set(answer.json())) == (422, KEPT)
    assert [error["field"] for error in answer.json()["context"]["errors"]] == ["model_id"]
    assert the_hub.asked == []
    assert await footprint(log, servers) == before


async def test_nothing_is_asked_for_a_project_that_is_not_there(api: httpx.AsyncClient, the_hub: FakeHub):
    the_hub.asked.clear()

    answer = await resolve(api, "019a0000-0000-7000-8000-000000000003", "some/model")

    assert (answer.status_code, the_hub.asked) == (404, [])


def test_the_hubs_settings_go_by_the_names_that_other_tools_use_too_but_ours_go_first(servers: Servers):
    environ = servers.environ("gateway", port=1) | {"HF_ENDPOINT": "http://mirror", "HF_TOKEN": "theirs", "TRAINYARD_HF_TOKEN": "ours"}

    settings = load(Gateway, environ)

    assert (settings.hf_endpoint, settings.hf_token) == ("http://mirror", "ours")


# ---- folders


def safetensors(*shapes: list[int]) -> bytes:
    tensors = {f"t{n}": {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]} for n, shape in enumerate(shapes)}
    header = json.dumps({"__metadata__": {"format": "pt"}, **tensors}).encode()
    return struct.pack("<Q", len(header)) + header


async def test_a_folder_under_a_configured_root_is_a_model_too(api: httpx.AsyncClient, folders: Path, project: str):
    model = folders / "mine"
    model.mkdir()
    (model / "config.json").write_text(json.dumps({**LLAMA, "model_type": "unknown"}))
    (model / "a.safetensors").write_bytes(safetensors([10, 20], [5]))
    (model / "b.safetensors").write_bytes(safetensors([], [7, 7]))
    (model / "tokenizer.json").write_text("{}")
    (model / "README.md").write_text("---\ntags: [a]\nlicense: other\nlicense_name: 'our own'  # not yet final\n---\n# Mine\nlicense: mit\n")

    told = (await resolve(api, project, str(model))).json()

    assert (told["model_id"], told["num_parameters"], told["valid"], told["revision"]) == (str(model), 200 + 5 + 1 + 49, True, "")
    assert told["license"] == "our own"


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"model.safetensors": b"", "tokenizer.json": b"", "adapter_config.json": b"{}"}, "has an adapter in it"),
        ({"model.safetensors": b""}, "no tokenizer"),
        ({"pytorch_model.bin": b"", "tokenizer.json": b""}, "no safetensors"),
        ({"model.safetensors": b"", "tokenizer.json": b"", "tokenizer_config.json": b'{"auto_map": {"AutoTokenizer": ["t.Evil", null]}}'}, "code of its own"),
    ],
    ids=["adapter", "no tokenizer", "pickle", "code"],
)
async def test_a_folder_that_cannot_be_trained_is_not_valid_and_says_why(
    api: httpx.AsyncClient, folders: Path, project: str, files: dict[str, bytes], reason: str
):
    model = folders / reason
    model.mkdir()
    for name, content in {"config.json": json.dumps(LLAMA).encode(), **files}.items():
        (model / name).write_bytes(content or safetensors([1]))

    told = (await resolve(api, project, str(model))).json()

    assert told["valid"] is False
    assert any(reason in warning for warning in told["warnings"])


async def test_files_that_a_folder_only_links_to_are_read_under_the_roots_and_nowhere_else(api: httpx.AsyncClient, folders: Path, project: str, tmp_path: Path):
    blobs, inside, outside = (folders / name for name in ("blobs", "linked", "leading-out"))
    for folder in (blobs, inside, outside):
        folder.mkdir()
    for place in (blobs, tmp_path):
        (place / "config.json").write_text(json.dumps(LLAMA))
        (place / "model.safetensors").write_bytes(safetensors([3]))
    for folder, place in ((inside, blobs), (outside, tmp_path)):
        (folder / "config.json").symlink_to(place / "config.json")
        (folder / "model.safetensors").symlink_to(place / "model.safetensors")
        (folder / "tokenizer.json").write_text("{}")

    there, not_there = [await resolve(api, project, str(folder)) for folder in (inside, outside)]

    assert (there.status_code, there.json()["valid"]) == (200, True)
    assert not_there.status_code == 404


async def test_folders_elsewhere_are_not_there(api: httpx.AsyncClient, folders: Path, project: str, tmp_path: Path):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    (folders / "link").symlink_to(tmp_path)
    (folders / "loop").symlink_to(folders / "loop")

    answers = [
        await resolve(api, project, str(path)) for path in (tmp_path, folders / "link", folders / "loop", folders / ".." / "..", folders / "no", "/", "//")
    ]

    assert [answer.status_code for answer in answers] == [404] * len(answers)
    assert all(set(answer.json()) == KEPT for answer in answers)


async def test_odd_files_in_a_folder_hold_nobody_up(api: httpx.AsyncClient, folders: Path, project: str):
    odd = folders / "odd"
    odd.mkdir()
    os.mkfifo(odd / "config.json")
    (odd / "a.safetensors").write_bytes(struct.pack("<Q", 2**63) + b"{}")
    (odd / "b.safetensors").mkdir()

    told = (await resolve(api, project, str(odd))).json()

    assert (told["valid"], told["num_parameters"]) == (False, None)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
async def test_a_folder_whose_files_can_not_be_read_is_as_good_as_not_there(api: httpx.AsyncClient, folders: Path, project: str, name: str):
    unreadable = folders / f"unreadable {name}"
    unreadable.mkdir()
    (unreadable / name).symlink_to("/proc/self/mem")  # an error for root too

    assert (await resolve(api, project, str(unreadable))).status_code == 404


# ---- whatever the hub says


@pytest.mark.parametrize(
    ("config", "files", "reason"),
    [
        (LLAMA, ["config.json", "tokenizer.json", "pytorch_model.bin"], "no safetensors"),
        (LLAMA, ["config.json", "model.safetensors"], "no tokenizer"),
        (LLAMA, ["config.json", "model.safetensors", "tokenizer.json", "adapter_config.json"], "an adapter in it"),
        (LLAMA | {"auto_map": {"AutoModelForCausalLM": "modeling.Evil"}}, [], "code of its own"),
        (LLAMA | {"architectures": ["BertForMaskedLM"]}, [], "no causal language model (BertForMaskedLM)"),
        (LLAMA | {"architectures": []}, [], "names no architecture"),
        (LLAMA | {"quantization_config": {"quant_method": "gptq"}}, [], "quantised"),
        (LLAMA, ["adapter_config.json", "adapter_model.safetensors"], "no config.json"),
        (b"<html>", [], "can't be understood"),
        (b"[]", [], "can't be understood"),
        (b"[" * 100_000, [], "can't be understood"),
        (b'{"vocab_size": "many"}', [], "can't be understood"),
        (b'{"vocab_size": 1e400}', [], "can't be understood"),
        (LLAMA | {"vocab_size": -1}, [], "can't be understood"),
        (LLAMA | {"num_attention_heads": 0}, [], "can't be understood"),
        (LLAMA | {"architectures": "LlamaForCausalLM"}, [], "can't be understood"),
        (LLAMA | {"max_position_embeddings": 7}, [], "no more than 7 tokens"),
    ],
)
async def test_what_cannot_be_fine_tuned_is_not_valid_and_says_why(hub: Hub, the_hub: FakeHub, config: Any, files: list[str], reason: str):
    the_hub.model("some/model", config)
    the_hub.listing("some/model", *files)

    info = (await hub.describe("some/model")).info

    assert info.valid is False
    assert reason in info.warnings[0]


@pytest.mark.parametrize(
    ("config", "count"),
    [
        (LLAMA, 8030261248),
        (LLAMA | {"tie_word_embeddings": True}, 8030261248 - 4096 * 128256),
        (LLAMA | {"model_type": "never-heard-of"}, None),
        (LLAMA | {"hidden_size": 2**40, "vocab_size": 2**40}, None),
    ],
)
async def test_parameters_are_counted_from_the_config_when_the_hub_does_not_say(hub: Hub, the_hub: FakeHub, config: Any, count: int | None):
    the_hub.model("some/model", config)

    model = await hub.describe("some/model")

    assert (model.info.num_parameters, model.info.valid) == (count, True)
    assert (model.shape is None) == (count is None)


@pytest.mark.parametrize(
    ("listing", "license"),
    [
        ({"cardData": {"license": "mit"}, "tags": ["license:apache-2.0"]}, "mit"),
        ({"cardData": {"license": "other", "license_name": "our own"}}, "our own"),
        ({"cardData": {"license": "other"}}, "other"),
        ({"cardData": {"license": ["mit", "cc-by-4.0"]}}, "mit, cc-by-4.0"),
        ({"cardData": None, "tags": ["text-generation", "license:apache-2.0"]}, "apache-2.0"),
        ({"cardData": {}}, None),
    ],
)
async def test_the_licence_is_that_of_the_card_or_of_the_hubs_tags(hub: Hub, the_hub: FakeHub, listing: dict[str, Any], license: str | None):
    the_hub.model("some/model", **listing)

    assert (await hub.describe("some/model")).info.license == license


@pytest.mark.parametrize("status", [404, 401])
async def test_without_a_token_the_hub_says_of_what_it_lacks_that_one_has_to_log_in(hub: Hub, the_hub: FakeHub, status: int):
    the_hub.say("/api/models/no/model", status=status)

    with pytest.raises(NoSuchModel):
        await hub.describe("no/model")


async def test_a_token_that_the_hub_does_not_take_is_said_to_be_at_fault(the_hub: FakeHub):
    the_hub.say("/api/models/any/model", status=401)
    hub = Hub(endpoint=the_hub.url, token="hf_wrong", roots="")

    with pytest.raises(NotAllowed, match="TRAINYARD_HF_TOKEN"):
        await hub.describe("any/model")
    hub.close()


@pytest.mark.parametrize(
    ("status", "headers", "body"),
    [
        (500, {}, b""),
        (502, {}, b""),
        (429, {"Retry_After": "1"}, b""),
        (418, {}, b""),
        (200, {}, b""),
        (200, {}, b"<html>not a hub</html>"),
        (200, {}, b"[" * 100_000),
        (200, {}, b'{"sha": 1}'),
        (200, {}, b'{"sha": "../../x", "siblings": []}'),
        (200, {}, b'{"siblings": []}'),
        (200, {"Content_Encoding": "gzip"}, b"this is not gzip"),
        (200, {"Content_Length": "1000"}, b"{}"),
        (302, {}, b""),
        (302, {"Location": "/api/models/odd/hub"}, b""),
        (302, {"Location": "file:///etc/passwd"}, b""),
        (302, {"Location": "ftp://127.0.0.1/x"}, b""),
        (302, {"Location": "https://127.0.0.1:1/x"}, b""),
        (302, {"Location": "http://[::1"}, b""),
    ],
)
async def test_a_hub_that_makes_no_sense_counts_as_one_that_is_down(hub: Hub, the_hub: FakeHub, monkeypatch: pytest.MonkeyPatch, status, headers, body):
    monkeypatch.setattr(hub_module, "PATIENCE", 0.5)
    the_hub.say("/api/models/odd/hub", body, status=status, **headers)

    with pytest.raises(HubDown):
        await hub.describe("odd/hub")


async def test_an_answer_without_end_is_given_up(hub: Hub, the_hub: FakeHub, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(hub_module, "LISTING", 100_000)
    the_hub.say("/api/models/long/hub", b" " * 200_000)

    with pytest.raises(HubDown):
        await hub.describe("long/hub")


async def test_a_hub_that_is_not_there_is_down():
    hub = Hub(endpoint="http://127.0.0.1:1", token="", roots="")

    with pytest.raises(HubDown, match=r"http://127\.0\.0\.1:1"):
        await hub.describe("any/model")
    hub.close()

"""Models that answer: loaded once however many ask for them, kept as long as their memory allows, the ones that nobody asked for let go first."""

import asyncio
import hashlib
import time
from collections import OrderedDict
from contextlib import suppress
from typing import Any

import msgspec
import numpy as np
import onnxruntime
from numpy.typing import NDArray

from libs.events import Claim
from libs.prediction import Prediction
from libs.storage import Storage

from . import images
from .features import Preparation, Target
from .reading import Reader, said
from .transfer import Spoiled

AT_ONCE = 2
"""Models that are loaded at the same time: each needs three times its size for a moment."""
PATIENCE = 60.0
"""Seconds for one of them."""
OWN = 512 * 1024
"""Bytes that a session takes besides the weights, which it holds once, and a quarter for what it makes of them."""
DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml"})
"""Of operators. Others may be anybody's code, or read files."""
TRIES = 3
TOGETHER = 0.25
"""Seconds that the rows of a table may take which go through a model together: what takes long also takes much memory."""
_CHUNK = 4 * 1024 * 1024


class Unusable(Exception):
    """A model that can't answer, whoever asks."""


class TooLarge(Exception):
    """A model for which there will never be enough memory."""


Key = tuple[str, str, str]


class Loaded:
    """Of a table there is a reader, of images a preparation."""

    def __init__(self, session: onnxruntime.InferenceSession, prepared: Reader | images.Preparation, *, size: int) -> None:
        self._session = session
        self.size = size
        self.seconds = 0.0
        """That one row takes."""
        if isinstance(prepared, Reader):
            self.reader, self.look = prepared, None
            self._target, self._shape = prepared.target, (1, prepared.width)
        else:
            self.reader, self.look = None, prepared
            self._target = Target(name=prepared.target, task="classification", classes=prepared.classes)
            self._shape = (1, 3, prepared.size, prepared.size)

    def answer(self, x: NDArray[np.float32], *, probabilities: bool) -> list[Prediction]:
        if self.reader and len(x) * self.seconds > TOGETHER:
            return said(self._target, self._in_parts(x), probabilities=probabilities)
        return said(self._target, self._run(x), probabilities=probabilities)

    def prove(self) -> None:
        """That it takes what the preparation makes, and says what the target needs."""
        x = np.zeros(self._shape, dtype=np.float32)
        try:
            output, seconds = zip(*(self._timed(x) for _ in range(TRIES)), strict=True)
        except Exception as error:  # each fault of a model has a class of its own there, and no class in common
            raise Unusable(f"it doesn't take what preprocess.json makes: {str(error)[:300]}") from error
        self.seconds = min(seconds)
        wanted = max(1, len(self._target.classes))
        if output[0].shape != (1, wanted):
            raise Unusable(f"it answers in the shape {output[0].shape} where preprocess.json has {wanted} outputs")

    def _in_parts(self, x: NDArray[np.float32]) -> NDArray[Any]:
        few = max(1, int(TOGETHER / self.seconds))
        return np.concatenate([self._run(x[first : first + few]) for first in range(0, len(x), few)])

    def _timed(self, x: NDArray[np.float32]) -> tuple[NDArray[Any], float]:
        began = time.perf_counter()
        return self._run(x), time.perf_counter() - began

    def _run(self, x: NDArray[np.float32]) -> NDArray[Any]:
        found: Any = self._session.run(["y"], {"x": x})
        return found[0]


class Sessions:
    def __init__(self, storage: Storage, *, budget: int) -> None:
        self._storage = storage
        self._budget = budget
        self._kept: OrderedDict[Key, Loaded] = OrderedDict()
        self._reserved = 0
        """Bytes for those that are being loaded."""
        self._loading: dict[Key, asyncio.Task[Loaded]] = {}
        self._turn = asyncio.Semaphore(AT_ONCE)
        self._freed = asyncio.Condition()

    def ready(self, model: Claim, preparation: Claim) -> Loaded | None:
        """If it is there."""
        key = _key(model, preparation)
        if loaded := self._kept.get(key):
            self._kept.move_to_end(key)
        return loaded

    async def get(self, model: Claim, preparation: Claim) -> Loaded:
        """Whoever asks meanwhile waits for the same load, and it goes on when he doesn't."""
        if loaded := self.ready(model, preparation):
            return loaded
        key = _key(model, preparation)
        if (task := self._loading.get(key)) is None:
            task = self._loading[key] = asyncio.create_task(self._load(key, model, preparation))
            task.add_done_callback(lambda task: self._loaded(key, task))
        return await asyncio.shield(task)

    async def close(self) -> None:
        tasks = list(self._loading.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _loaded(self, key: Key, task: asyncio.Task[Loaded]) -> None:
        del self._loading[key]
        with suppress(asyncio.CancelledError):
            task.exception()  # told to those who waited; if none did it isn't worth a line

    async def _load(self, key: Key, model: Claim, preparation: Claim) -> Loaded:
        size = model.size + model.size // 4 + preparation.size + OWN
        if size > self._budget:
            raise TooLarge(f"The model needs {size / 1e6:,.0f} MB of memory to predict, and all models together may take {self._budget / 1e6:,.0f} MB")
        async with self._turn, asyncio.timeout(PATIENCE):
            async with self._freed:
                await self._freed.wait_for(lambda: self._reserved + size <= self._budget)
                self._reserved += size
            try:
                self._make_room()
                files = [await _whole(self._storage, claim) for claim in (model, preparation)]
                loaded = self._kept[key] = await asyncio.to_thread(opened, *files, size=size)
            finally:
                await asyncio.shield(self._give_back(size))
            return loaded

    async def _give_back(self, size: int) -> None:
        async with self._freed:
            self._reserved -= size
            self._freed.notify_all()

    def _make_room(self) -> None:
        while self._kept and sum(loaded.size for loaded in self._kept.values()) + self._reserved > self._budget:
            self._kept.popitem(last=False)


def opened(model: bytes, preparation: bytes, *, size: int) -> Loaded:
    """Raises Unusable."""
    try:
        prepared = _prepared(preparation)
    except msgspec.MsgspecError as error:
        raise Unusable(f"its preprocess.json is not to be read: {error}") from error
    _check(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.enable_cpu_mem_arena = False  # it would keep what the largest question took
    options.add_session_config_entry("session.disable_prepacking", "1")  # that holds the weights twice
    try:
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # see prove
        raise Unusable(str(error)[:300]) from error
    if [value.name for value in session.get_inputs()] != ["x"] or "y" not in [value.name for value in session.get_outputs()]:
        raise Unusable("it doesn't have one input x and an output y")
    loaded = Loaded(session, prepared, size=size)
    loaded.prove()
    return loaded


def _prepared(data: bytes) -> Reader | images.Preparation:
    if msgspec.json.decode(data, type=_Kind).kind == "image":
        return msgspec.json.decode(data, type=images.Preparation)
    return Reader(msgspec.json.decode(data, type=Preparation))


class _Kind(msgspec.Struct):
    kind: str = "table"


def _check(model: bytes) -> None:
    """onnxruntime would read files that a model names, also beside and above the folder that we are in."""
    import onnx  # a third of a second that no service needs to start
    from google.protobuf.message import DecodeError
    from onnx.external_data_helper import uses_external_data

    try:
        known = onnx.load_model_from_string(model)
    except DecodeError as error:
        raise Unusable("it is no ONNX file") from error
    own = {(function.domain, function.name) for function in known.functions}
    graphs = [known.graph]
    nodes = [node for function in known.functions for node in function.node]
    tensors: list[onnx.TensorProto] = []
    while graphs or nodes:
        if graphs:
            graph = graphs.pop()
            nodes += graph.node
            tensors += graph.initializer
            tensors += [part for sparse in graph.sparse_initializer for part in (sparse.values, sparse.indices)]
            continue
        node = nodes.pop()
        if node.domain not in DOMAINS and (node.domain, node.op_type) not in own:
            raise Unusable(f"it wants an operator {node.op_type[:100]!r} of {node.domain[:100]!r}")
        for attribute in node.attribute:
            graphs += [attribute.g, *attribute.graphs] if attribute.HasField("g") else attribute.graphs
            tensors += [attribute.t, *attribute.tensors]
            tensors += [part for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors) for part in (sparse.values, sparse.indices)]
    if any(uses_external_data(tensor) or tensor.external_data for tensor in tensors):
        raise Unusable("a part of it lies in another file")


async def _whole(storage: Storage, claim: Claim) -> bytes:
    """Raises Spoiled where something else is there."""
    data, digest = bytearray(), hashlib.sha256()
    async for chunk in storage.chunks(claim.key, size=_CHUNK):
        data += chunk
        digest.update(chunk)
        if len(data) > claim.size:
            break
    if len(data) != claim.size or digest.hexdigest() != claim.sha256:
        raise Spoiled(claim.key)
    return bytes(data)


def _key(model: Claim, preparation: Claim) -> Key:
    return model.key, model.sha256, preparation.sha256

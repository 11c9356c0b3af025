"""Small models that predict, put together by hand: as a run would have left them in the object store."""

import asyncio
from collections.abc import Sequence
from io import BytesIO
from typing import Any
from uuid import uuid4

import msgspec
import numpy as np
from nats.aio.client import Client
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from PIL import Image

from libs.events import Claim
from libs.prediction import SUBJECT, Answer, Question
from libs.storage import Storage
from services.training import images
from services.training.features import Feature, Preparation, Target

CLASSES = ["cat", "dog", "owl"]
NAMES = ["a", "b", "c", "d"]


def preparation(*, classes: Sequence[str] = CLASSES, names: Sequence[str] = NAMES) -> Preparation:
    """Numbers as they are."""
    features = [Feature(name=name, type="numeric", medians=[0.0], means=[0.0], scales=[1.0]) for name in names]
    target = Target(name="y", task="classification", classes=list(classes)) if classes else Target(name="y", task="regression", mean=100.0, scale=10.0)
    return Preparation(features=features, target=target, missing="median", farthest=1000.0)


def linear(*, width: int = 4, outputs: int = 3, seed: int = 0, hidden: int = 0) -> bytes:
    """Softmax of a matrix (the first features' own without a seed), with a layer in between where one is asked for."""
    random = np.random.default_rng(seed)
    last = random.normal(size=(hidden or width, outputs)) if seed or hidden else np.eye(width, outputs)
    matrices = [*([random.normal(size=(width, hidden))] if hidden else []), last]
    nodes: list[NodeProto] = []
    flowing = "x"
    for n in range(len(matrices)):
        nodes.append(helper.make_node("MatMul", [flowing, f"w{n}"], [f"h{n}"]))
        flowing = f"h{n}"
        if n + 1 < len(matrices):
            nodes.append(helper.make_node("Relu", [flowing], [f"r{n}"]))
            flowing = f"r{n}"
    end = helper.make_node("Softmax", [flowing], ["y"], axis=1) if outputs > 1 else helper.make_node("Identity", [flowing], ["y"])
    weights = [numpy_helper.from_array(matrix.astype(np.float32), f"w{n}") for n, matrix in enumerate(matrices)]
    return model([*nodes, end], weights, width=width, outputs=outputs).SerializeToString()


def mean_colour(*, size: int = 32) -> bytes:
    """Softmax of how red, green and blue an image is."""
    nodes = [
        helper.make_node("GlobalAveragePool", ["x"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Softmax", ["flat"], ["y"], axis=1),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["images", 3, size, size])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["images", 3])
    return helper.make_model(helper.make_graph(nodes, "graph", [x], [y]), opset_imports=[helper.make_opsetid("", 18)], ir_version=10).SerializeToString()


def of_images(*, size: int = 32) -> images.Preparation:
    return images.Preparation(size=size, crop=1.0, resample="bilinear", mean=[0.0] * 3, std=[0.1] * 3, target="label", classes=["red", "green", "blue"])


def png(colour: tuple[int, int, int] = (255, 0, 0), *, size: tuple[int, int] = (40, 30)) -> bytes:
    file = BytesIO()
    Image.new("RGB", size, colour).save(file, "PNG")
    return file.getvalue()


def model(nodes: Sequence[NodeProto], weights: Sequence[TensorProto], *, width: int = 4, outputs: int = 3, domains: Sequence[str] = ()) -> ModelProto:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", width])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", outputs])
    imports = [helper.make_opsetid("", 18), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(helper.make_graph(list(nodes), "graph", [x], [y], list(weights)), opset_imports=imports, ir_version=10)


async def stored(storage: Storage, tenant: str, *, onnx: bytes | None = None, prepared: Preparation | images.Preparation | None = None) -> tuple[Claim, Claim]:
    """Its ONNX and its preparation."""
    run = f"{tenant}/{uuid4()}"
    about = msgspec.json.encode(preparation() if prepared is None else prepared)
    return await storage.put(run, linear() if onnx is None else onnx), await storage.put(run, about)


def question(tenant: str, files: tuple[Claim, Claim], *inputs: Any, **changed: Any) -> Question:
    asked = Question(
        tenant=tenant,
        model=files[0],
        preparation=files[1],
        inputs=[msgspec.Raw(msgspec.json.encode(given)) for given in inputs],
        folder=f"{tenant}/{uuid4()}",
        seconds=10.0,
    )
    return msgspec.structs.replace(asked, **changed)


async def ask(nc: Client, question: Question, *, patience: float = 15.0) -> Answer:
    return await _ask(nc, msgspec.json.encode(question), patience=patience)


async def ask_often(nc: Client, question: Question, *, times: int) -> list[Answer]:
    """At once."""
    asked = msgspec.json.encode(question)
    return await asyncio.gather(*(_ask(nc, asked, patience=30.0) for _ in range(times)))


async def _ask(nc: Client, asked: bytes, *, patience: float) -> Answer:
    return msgspec.json.decode((await nc.request(f"ask.{SUBJECT}", asked, timeout=patience)).data, type=Answer)

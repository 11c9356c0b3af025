"""Models as ONNX, and the proof that they answer as what was trained. Imported in the child only."""

import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import nn

from .outcome import Failure

MODEL = "model.onnx"
TOLERANCE = 1e-3
"""Of a probability, or of a standardised value: float32 sums in another order."""


class Answering(nn.Module):
    """Probabilities where the network gives logits."""

    def __init__(self, network: nn.Module, *, classes: bool) -> None:
        super().__init__()
        self.network = network
        self.classes = classes

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.network(x)
        return torch.softmax(y, dim=1) if self.classes else y


def export(network: nn.Module, example: torch.Tensor, path: Path, *, classes: bool) -> None:
    """In one file: input `x` with any number of rows, output `y`. Two rows at least in the example: of one it would be taken to be always one."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    answering = Answering(network, classes=classes).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            answering,
            (example,),
            path,
            input_names=["x"],
            output_names=["y"],
            dynamic_shapes=({0: torch.export.Dim("rows")},),
            dynamo=True,
            external_data=False,
            verbose=False,
        )


def session(path: Path, *, threads: int = 1) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def answered(path: Path, x: NDArray[np.float32], *, threads: int = 1) -> NDArray[Any]:
    return np.asarray(session(path, threads=threads).run(["y"], {"x": x})[0])


def verified(path: Path, x: NDArray[np.float32], expected: NDArray[Any], *, threads: int = 1) -> dict[str, Any]:
    """Raises a Failure where the file answers otherwise than the trained model."""
    found = answered(path, x, threads=threads)
    if found.shape != expected.shape:
        raise Failure("internal", f"The ONNX file answers in the shape {found.shape}, and the trained model in {expected.shape}.")
    away = float(np.abs(found - expected).max())
    if not away <= TOLERANCE:
        raise Failure("internal", f"The ONNX file doesn't answer as the trained model: they differ by up to {away:.3g} on rows that were held out.")
    return {"rows": len(x), "largest_difference": away, "tolerance": TOLERANCE}

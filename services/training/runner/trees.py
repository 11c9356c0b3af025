"""A LightGBM model as ONNX: the same decisions on the same float32 input. Imported in the child only."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from lightgbm import Booster
from onnx import TensorProto, helper, numpy_helper

LESS_OR_EQUAL, MEMBER = 0, 6
"""Modes of a node."""
LARGEST = float(np.finfo(np.float32).max)
OPSET, ML_OPSET, IR = 21, 5, 10

Tree = dict[str, Any]


class _Nodes:
    """Of all trees, in the lists that the operator wants."""

    def __init__(self) -> None:
        self.features: list[int] = []
        self.modes: list[int] = []
        self.splits: list[float] = []
        self.gone_is_true: list[int] = []
        self.branches: dict[str, list[int]] = {name: [] for name in ("true", "false")}
        self.leaf_branches: dict[str, list[int]] = {name: [] for name in ("true", "false")}
        self.members: list[float] = []
        self.roots: list[int] = []
        self.leaves: list[float] = []
        self.targets: list[int] = []

    def add(self, tree: Tree, target: int) -> None:
        root = tree["tree_structure"]
        self.roots.append(len(self.features))
        if "leaf_value" in root:  # one answer for all: both ways lead to it
            at = self._node(0, LESS_OR_EQUAL, 0.0, gone_is_true=True)
            leaf = self._leaf(root, target)
            for way in ("true", "false"):
                self.branches[way][at], self.leaf_branches[way][at] = leaf, 1
            return
        waiting: list[tuple[Tree, int, str]] = [(root, -1, "")]
        while waiting:
            node, parent, way = waiting.pop()
            if "leaf_value" in node:
                self.branches[way][parent], self.leaf_branches[way][parent] = self._leaf(node, target), 1
                continue
            at = self._split(node)
            if parent >= 0:
                self.branches[way][parent] = at
            waiting += [(node["right_child"], at, "false"), (node["left_child"], at, "true")]

    def _split(self, node: Tree) -> int:
        if node["decision_type"] == "==":  # what is missing, or unknown, is no member
            self.members += [*(float(code) for code in str(node["threshold"]).split("||")), math.nan]
            return self._node(node["split_feature"], MEMBER, 0.0, gone_is_true=False)
        threshold = float(node["threshold"])
        gone_is_true = threshold >= 0 if node["missing_type"] == "None" else bool(node["default_left"])
        return self._node(node["split_feature"], LESS_OR_EQUAL, _below(threshold), gone_is_true=gone_is_true)

    def _node(self, feature: int, mode: int, split: float, *, gone_is_true: bool) -> int:
        self.features.append(feature)
        self.modes.append(mode)
        self.splits.append(split)
        self.gone_is_true.append(int(gone_is_true))
        for way in ("true", "false"):
            self.branches[way].append(0)
            self.leaf_branches[way].append(0)
        return len(self.features) - 1

    def _leaf(self, node: Tree, target: int) -> int:
        self.leaves.append(float(node["leaf_value"]))
        self.targets.append(target)
        return len(self.leaves) - 1


def _below(threshold: float) -> float:
    """The largest float32 that isn't larger: no float32 lies between the two, so each goes the way it went."""
    if threshold >= LARGEST:
        return LARGEST
    near = np.float32(threshold)
    return float(near if float(near) <= threshold else np.nextafter(near, np.float32(-np.inf)))


def convert(booster: Booster, *, rounds: int, classes: int) -> onnx.ModelProto:
    """Of the first rounds. `classes` is 0 for values. Input `x`, output `y`: probabilities of the classes, or the value."""
    trees = _dumped(booster, rounds)
    outputs = classes if classes > 2 else 1
    nodes = _Nodes()
    for number, tree in enumerate(trees):
        nodes.add(tree, number % outputs)
    attributes: dict[str, Any] = {
        "aggregate_function": 1,
        "post_transform": 0,
        "n_targets": outputs,
        "tree_roots": nodes.roots,
        "nodes_featureids": nodes.features,
        "nodes_modes": numpy_helper.from_array(np.array(nodes.modes, dtype=np.uint8)),
        "nodes_splits": _floats(nodes.splits),
        "nodes_missing_value_tracks_true": nodes.gone_is_true,
        "nodes_truenodeids": nodes.branches["true"],
        "nodes_trueleafs": nodes.leaf_branches["true"],
        "nodes_falsenodeids": nodes.branches["false"],
        "nodes_falseleafs": nodes.leaf_branches["false"],
        "leaf_targetids": nodes.targets,
        "leaf_weights": _floats(nodes.leaves),
    }
    if nodes.members:
        attributes["membership_values"] = _floats(nodes.members)
    ensemble = helper.make_node("TreeEnsemble", ["x"], ["raw"], domain="ai.onnx.ml", **attributes)
    graph = helper.make_graph(
        [ensemble, *_answer(classes)],
        "trees",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", booster.num_feature()])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", max(classes, 1)])],
        [numpy_helper.from_array(np.array(1.0, dtype=np.float32), "one")] if classes == 2 else [],
    )
    imports = [helper.make_opsetid("", OPSET), helper.make_opsetid("ai.onnx.ml", ML_OPSET)]
    return helper.make_model(graph, opset_imports=imports, ir_version=IR, producer_name="trainyard")


def _answer(classes: int) -> Iterator[onnx.NodeProto]:
    if classes > 2:
        yield helper.make_node("Softmax", ["raw"], ["y"], axis=1)
    elif classes == 2:
        yield helper.make_node("Sigmoid", ["raw"], ["second"])
        yield helper.make_node("Sub", ["one", "second"], ["first"])
        yield helper.make_node("Concat", ["first", "second"], ["y"], axis=1)
    else:
        yield helper.make_node("Identity", ["raw"], ["y"])


def _floats(values: list[float]) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(values, dtype=np.float32))


def _dumped(booster: Booster, rounds: int) -> list[Tree]:
    return booster.dump_model(num_iteration=rounds)["tree_info"]

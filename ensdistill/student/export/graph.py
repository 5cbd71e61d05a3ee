"""A graph of ONNX that grows node by node."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, compose, helper, numpy_helper

OPSET = 18
"""Opset of the files by default: the oldest with all operators of the graphs, so that most runtimes read it
(onnxruntime from 1.14 on)."""
NEWEST_OPSET = 21
ML_OPSET, IR_VERSION = 3, 8
ML = "ai.onnx.ml"
FLOAT, DOUBLE, INT64 = TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.INT64
TYPES = {
    "float16": TensorProto.FLOAT16,
    "float32": FLOAT,
    "float64": DOUBLE,
    "int8": TensorProto.INT8,
    "int16": TensorProto.INT16,
    "int32": TensorProto.INT32,
    "int64": INT64,
    "uint8": TensorProto.UINT8,
    "uint16": TensorProto.UINT16,
    "uint32": TensorProto.UINT32,
    "uint64": TensorProto.UINT64,
    "bool": TensorProto.BOOL,
    "string": TensorProto.STRING,
}
OTHERWISE = "export with --to torch, or keep the folder that save wrote"
OF_ESTIMATORS = "export with --to safetensors, or distil it into a network"
_BATCH = "rows"  # the name of the axis whose length is free


class Graph:
    """Nodes, constants, inputs and outputs, under names that never collide.

    Parameters
    ----------
    opset : int
    taken : sequence of str
        Names that no node may have.
    """

    def __init__(self, opset: int = OPSET, taken: Sequence[str] = ()) -> None:
        self.opset = opset
        self.inputs: list[onnx.ValueInfoProto] = []
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []
        self._functions: list[onnx.FunctionProto] = []
        self._domains = {"": opset, ML: ML_OPSET}
        self.reserved = frozenset(taken)
        self._taken, self._parts = set(taken), 0

    def input(self, name: str, dtype: str, shape: Sequence[int | str]) -> str:
        """Declare an input [rows, *shape] of a NumPy dtype, or of "string"."""
        self._taken.add(name)
        self.inputs.append(helper.make_tensor_value_info(name, TYPES[dtype], [_BATCH, *shape]))
        return name

    def constant(self, value: Any, dtype: Any = None) -> str:
        """The name of a constant tensor."""
        array = np.asarray(value, dtype)
        name = self._name("constant")
        if array.dtype.kind in "OU":
            texts = [text.encode() for text in array.ravel().tolist()]
            self._constants.append(helper.make_tensor(name, TensorProto.STRING, array.shape, texts))
        else:
            self._constants.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def op(self, kind: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        """Add a node of one output; returns the output's name."""
        name = self._name(kind)
        self._nodes.append(
            helper.make_node(kind, list(inputs), [name], name=name, domain=domain, **attributes)
        )
        return name

    def cast(self, value: str, dtype: int) -> str:
        """The tensor in another type."""
        return self.op("Cast", value, to=dtype)

    def join(self, parts: Sequence[str]) -> str:
        """Tensors [N, k] side by side."""
        return parts[0] if len(parts) == 1 else self.op("Concat", *parts, axis=1)

    def choose(
        self, condition: str, dtype: int, then: Callable[[], str], otherwise: Callable[[], str]
    ) -> str:
        """The tensor that one of two functions adds to the graph; only its nodes run."""
        branches = {}
        for name, make in (("then_branch", then), ("else_branch", otherwise)):
            outer, self._nodes = self._nodes, []
            made = self.op("Identity", make())
            info = helper.make_tensor_value_info(made, dtype, None)
            branches[name] = helper.make_graph(self._nodes, self._name(name), [], [info])
            self._nodes = outer
        return self.op("If", condition, **branches)

    def append(self, model: onnx.ModelProto, inputs: Mapping[str, str]) -> list[str]:
        """Add the nodes of a model, whose inputs are tensors of this graph; returns the names of its outputs.

        Parameters
        ----------
        model : ModelProto
        inputs : dict of str to str
            For each input of the model a tensor of this graph.
        """
        self._parts += 1
        added = compose.add_prefix(model, prefix=f"part{self._parts}/")
        joined = {value.name: value for value in added.graph.input}
        missing = [name for name in joined if name.removeprefix(f"part{self._parts}/") not in inputs]
        if missing:
            raise ValueError(f"inputs: expected a tensor for each input of the model; got none for {missing}")
        for name in joined:
            node = helper.make_node("Identity", [inputs[name.removeprefix(f"part{self._parts}/")]], [name])
            self._nodes.append(node)
        for node in added.graph.node:
            del node.metadata_props[:]  # places in source files
            node.doc_string = ""
            self._nodes.append(node)
        self._constants.extend(added.graph.initializer)
        self._functions.extend(added.functions)
        for entry in added.opset_import:
            self._domains[entry.domain] = max(entry.version, self._domains.get(entry.domain, 0))
        return [value.name for value in added.graph.output]

    def model(self, outputs: Mapping[str, tuple[str, int, Sequence[int]]]) -> onnx.ModelProto:
        """The checked model; ``outputs`` has the tensor, type and shape (without the batch) of each name."""
        nodes = [*self._nodes]
        for name, (value, _, _) in outputs.items():
            nodes.append(helper.make_node("Identity", [value], [name], name=f"output {name}"))
        infos = [
            helper.make_tensor_value_info(name, dtype, [_BATCH, *shape])
            for name, (_, dtype, shape) in outputs.items()
        ]
        nodes, used = _needed(nodes, list(outputs))
        constants = [constant for constant in self._constants if constant.name in used]
        graph = helper.make_graph(nodes, "student", self.inputs, infos, constants)
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid(domain, version) for domain, version in self._domains.items()],
            ir_version=IR_VERSION,
            producer_name="ensdistill",
            functions=self._functions,
        )
        onnx.checker.check_model(model)
        return model

    def _name(self, kind: str) -> str:
        number = len(self._nodes) + len(self._constants)
        name = f"{kind}_{number}"
        while name in self._taken:
            number += 1
            name = f"{kind}_{number}"
        self._taken.add(name)
        return name


def _needed(nodes: Sequence[onnx.NodeProto], outputs: Sequence[str]) -> tuple[list[onnx.NodeProto], set[str]]:
    """The nodes on which the outputs depend, in order, and the names of all tensors that these take."""
    used, kept = set(outputs), []
    for node in reversed(nodes):
        if used.intersection(node.output):
            kept.append(node)
            used.update(_taken_by(node))
    return kept[::-1], used


def _taken_by(node: onnx.NodeProto) -> set[str]:
    """The tensors that a node takes, also within the graphs of its attributes."""
    inner = [graph for a in node.attribute for graph in ([a.g] if a.HasField("g") else []) + [*a.graphs]]
    names = {name for graph in inner for part in graph.node for name in _taken_by(part)}
    return {*node.input, *names, *(value.name for graph in inner for value in graph.output)}

"""The kernels of a graph: which operations run together, which views are copies, what each reads, writes and multiplies.

Element-wise neighbours are grouped as `mx.compile` groups them. A view is free unless its input's strides force a copy.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from lazy_graph import VIEWS, Graph, Node

# What mx.compile takes into one kernel.
ELEMENTWISE = frozenset({
    "Abs", "Add", "ArcCos", "ArcCosh", "ArcSin", "ArcSinh", "ArcTan", "ArcTan2", "ArcTanh", "AsType", "BitwiseBinary",
    "BitwiseInvert", "Broadcast", "Ceil", "Conjugate", "Cos", "Cosh", "Divide", "Equal", "Erf", "ErfInv", "Exp", "Expm1",
    "Floor", "Greater", "GreaterEqual", "Less", "LessEqual", "Log", "LogAddExp", "LogicalAnd", "LogicalNot", "LogicalOr",
    "Maximum", "Minimum", "Multiply", "Negative", "NotEqual", "Power", "Remainder", "Round", "Select", "Sigmoid", "Sign",
    "Sin", "Sinh", "Sqrt", "Square", "Subtract", "Tan", "Tanh",
})  # fmt: skip
DEPTH, ARRAYS = 11, 24  # how deep such a kernel may be, and how many arrays it may read
PRODUCTS = ("Matmul", "AddMM", "QuantizedMatmul")


@dataclass(frozen=True)
class Kernel:
    """One launch."""

    name: str  # the operation; "Elementwise" for a group; "Copy"; "Repeat" for a copy that writes out what was broadcast
    bytes: int  # read and written
    flops: int  # of products


def kernels(graph: Graph) -> Iterator[Kernel]:
    """All launches, in order."""
    layouts = _layouts(graph)
    consumers = graph.consumers()
    for group in groups(graph):
        if len(group) > 1:
            yield Kernel("Elementwise", _group_bytes(graph, layouts, group), 0)
        elif group[0].name in VIEWS:
            yield from _copy(graph, layouts, group[0])
        else:
            node = group[0]
            shared = len(consumers[node.inputs[0]]) > 1 if node.inputs else False
            yield Kernel(node.name, _bytes(graph, layouts, node, shared), flops(graph, node))


def groups(graph: Graph) -> list[tuple[Node, ...]]:
    """The nodes, those together that `mx.compile` makes one kernel of."""
    consumers, found, taken = graph.consumers(), [], set[int]()
    producers = {name: place for place, node in enumerate(graph.nodes) for name in node.outputs}
    for place in reversed(range(len(graph.nodes))):
        if place not in taken:
            group = _Group(graph, consumers, producers, place)
            taken |= group.members
            found.append(tuple(graph.nodes[member] for member in sorted(group.members | group.split)))
    return found[::-1]


def flops(graph: Graph, node: Node) -> int:
    """FLOPs of a product, a convolution or an attention; 0 for anything else."""
    shapes = [graph.shapes[name] for name in node.inputs]
    if node.name in PRODUCTS:
        return 2 * math.prod(graph.shapes[node.outputs[0]]) * shapes[0][-1]
    if node.name == "Convolution":
        return 2 * math.prod(graph.shapes[node.outputs[0]]) * math.prod(shapes[1][1:])
    return 4 * math.prod(shapes[0]) * shapes[1][-2] if node.name == "SDPA" else 0


class _Group:
    """What one element-wise kernel takes in, from its result backwards."""

    def __init__(self, graph: Graph, consumers: dict[str, list[int]], producers: dict[str, int], root: int):
        self._graph, self._consumers, self._producers = graph, consumers, producers
        self.members, self.split, self._inputs = (
            {root},
            set[int](),
            set[str](),
        )  # split: broadcasts that others read too, done again
        self._shape = graph.shapes[graph.nodes[root].outputs[0]]
        if graph.nodes[root].name in ELEMENTWISE - VIEWS:
            self._visit_inputs(root, 1)

    def _visit_inputs(self, place: int, depth: int) -> None:
        for name in self._graph.nodes[place].inputs:
            self._visit(name, depth)

    def _visit(self, name: str, depth: int) -> None:
        place = self._producers.get(name)
        if place is None or depth >= DEPTH or not self._fits(name, place):
            self._inputs.add(name)
        elif place not in self.members | self.split:
            self._take(name, place, depth)

    def _fits(self, name: str, place: int) -> bool:
        kept = name in self._graph.outputs and self._graph.shapes[name] != self._shape
        return self._graph.nodes[place].name in ELEMENTWISE and not kept

    def _take(self, name: str, place: int, depth: int) -> None:
        inside = all(consumer in self.members for consumer in self._consumers[name])
        if not inside and self._graph.nodes[place].name != "Broadcast":
            self._inputs.add(name)
            return
        self._inputs = self._inputs | {name} if name in self._graph.outputs else self._inputs - {name}
        if len(self._inputs) < ARRAYS:
            (self.members if inside else self.split).add(place)
            self._visit_inputs(place, depth + 1)


def _layouts(graph: Graph) -> dict[str, np.ndarray]:
    """Each array as NumPy would stride it: arrays of no memory, which must not be read."""
    found = {name: _contiguous(shape) for name, shape in graph.shapes.items()}
    for node in graph.nodes:
        if node.name in VIEWS:
            found |= dict(zip(node.outputs, _views(graph, node, found[node.inputs[0]]), strict=False))
    return found


def _contiguous(shape: tuple[int, ...]) -> np.ndarray:
    strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    return np.lib.stride_tricks.as_strided(np.empty(1, np.uint8), shape, strides)


def _views(graph: Graph, node: Node, source: np.ndarray) -> list[np.ndarray]:
    """The outputs as views of the input; empty where there are none and the node is a copy."""
    if node.name == "Transpose":
        return [source.transpose(node.arguments[0])]
    if node.name == "Slice":
        return [source[tuple(slice(*bounds) for bounds in zip(*node.arguments, strict=True))]]
    if node.name == "Split":
        return np.split(source, node.arguments[0], axis=node.arguments[1])
    shape = graph.shapes[node.outputs[0]]
    if node.name.startswith("Broadcast"):
        return [np.broadcast_to(source, shape)]
    try:
        return [np.reshape(source, shape, copy=False)]
    except ValueError:
        return []


def _copy(graph: Graph, layouts: dict[str, np.ndarray], node: Node) -> Iterator[Kernel]:
    source = layouts[node.inputs[0]]
    if not _views(graph, node, source):
        real = _size(graph, node.inputs[0], source)
        yield Kernel("Copy" if real == graph.bytes_of(node.inputs[0]) else "Repeat", real + graph.bytes_of(node.outputs[0]), 0)


def _size(graph: Graph, name: str, layout: np.ndarray) -> int:
    """Bytes behind an array: what was broadcast is there once."""
    real = [size for size, stride in zip(layout.shape, layout.strides, strict=True) if stride]
    return math.prod(real) * int(graph.dtypes[name].size)


def _bytes(graph: Graph, layouts: dict[str, np.ndarray], node: Node, shared: bool) -> int:
    """What one operation reads and writes. `shared`: something else reads its first input, so that it cannot be overwritten."""
    result = sum(graph.bytes_of(name) for name in node.outputs)
    if node.name in ("Gather", "GatherAxis"):
        return 2 * result + graph.bytes_of(node.inputs[1])
    if node.name in ("DynamicSliceUpdate", "SliceUpdate"):
        return 2 * graph.bytes_of(node.inputs[1]) + (2 * result if shared else 0)
    return result + sum(_size(graph, name, layouts[name]) for name in set(node.inputs) - graph.constants)


def read_and_written(graph: Graph, group: tuple[Node, ...]) -> tuple[set[str], set[str]]:
    """The arrays that a kernel has from memory, constant numbers left out, and those that it leaves there."""
    made = {name for node in group for name in node.outputs}
    numbers = {name for name in graph.constants if math.prod(graph.shapes[name]) == 1}
    read = {name for node in group for name in node.inputs} - made - numbers
    return read, {*group[-1].outputs} | (made & graph.outputs)


def _group_bytes(graph: Graph, layouts: dict[str, np.ndarray], group: tuple[Node, ...]) -> int:
    read, written = read_and_written(graph, group)
    return sum(_size(graph, name, layouts[name]) for name in read) + sum(graph.bytes_of(name) for name in written)

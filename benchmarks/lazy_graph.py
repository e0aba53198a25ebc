"""A function of MLX arrays as a graph of operations, without computing anything.

`mx.export_function` reports shapes and dtypes of lazy arrays, so that full-size weights take no memory. Each operation of
mx.fast is one node, as on a GPU; a CPU would take it apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import mlx.core as mx
from mlx.utils import tree_flatten, tree_unflatten

FAST = {"rms_norm": "RMSNorm", "layer_norm": "LayerNorm", "rope": "RoPE", "scaled_dot_product_attention": "SDPA"}
VIEWS = frozenset({
    "Broadcast", "BroadcastAxes", "ExpandDims", "Flatten", "Reshape", "Slice",
    "Split", "Squeeze", "Transpose", "Unflatten",
})  # fmt: skip


@dataclass(frozen=True)
class Node:
    """One operation; its arrays are names."""

    name: str  # MLX's primitive, or the operation of mx.fast
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    arguments: tuple[Any, ...]


@dataclass(frozen=True)
class Graph:
    """Operations in an order in which they can run."""

    nodes: tuple[Node, ...]
    outputs: frozenset[str]
    constants: frozenset[str]
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, mx.Dtype]

    def consumers(self) -> dict[str, list[int]]:
        """Places of the nodes that read an array."""
        found: dict[str, list[int]] = {name: [] for name in self.shapes}
        for place, node in enumerate(self.nodes):
            for name in node.inputs:
                found[name].append(place)
        return found

    def bytes_of(self, name: str) -> int:
        """Size of a whole array."""
        return int(self.dtypes[name].size * _product(self.shapes[name]))


def trace(function: Callable[..., Any], *args: Any) -> Graph:
    """The graph of `function(*args)`; arguments and results are arrays, or lists and dicts of arrays."""
    events: list[dict[str, Any]] = []
    flat, leaves = _on_leaves(function, args)
    mx.export_function(events.append, flat, *leaves)
    inputs, outputs, constants = (_listed(events, kind) for kind in ("inputs", "outputs", "constants"))
    marks = {name: kind for (name, *_), kind in zip(inputs, FAST.values(), strict=False)}
    operations = [event for event in events if event["type"] == "primitive"]
    arrays = [*inputs, *(array for event in operations for array in event["outputs"])]
    arrays += [(name, array.shape, array.dtype) for name, array in constants]
    return Graph(
        nodes=tuple(_node(event, marks) for event in operations),
        outputs=frozenset(name for name, *_ in outputs),
        constants=frozenset(name for name, _ in constants),
        shapes={name: tuple(shape) for name, shape, _ in arrays},
        dtypes={name: dtype for name, _, dtype in arrays},
    )


def compiled_operations(function: Callable[..., Any], *args: Any) -> int:
    """How many operations, views aside, `mx.compile` itself leaves of `function(*args)`, for a function that fills no array.

    Read from MLX's drawing of the graph, in which each lazy argument is an operation that fills an array.
    """
    flat, leaves = _on_leaves(function, args)
    with TemporaryDirectory() as folder:
        file = Path(folder) / "graph.dot"
        mx.export_to_dot(str(file), *mx.compile(flat)(*leaves))
        labels = [line.split('label ="')[1].split('"')[0] for line in file.read_text().splitlines() if 'label ="' in line]
    return sum(label not in VIEWS | {"Full"} for label in labels)


def _listed(events: list[dict[str, Any]], kind: str) -> list[Any]:
    return next(event[kind] for event in events if event["type"] == kind)


def _on_leaves(function: Callable[..., Any], args: tuple[Any, ...]) -> tuple[Callable[..., list[mx.array]], list[mx.array]]:
    """Function and arguments for a flat list of arrays; the first of these mark the nodes of mx.fast."""
    names, leaves = zip(*tree_flatten([[mx.array(0) for _ in FAST], *args]), strict=True)

    def flat(*arrays: mx.array) -> list[mx.array]:
        marks, *rest = tree_unflatten(list(zip(names, arrays, strict=True)))
        with _fast_as_nodes(dict(zip(FAST, marks, strict=True))):
            return [array for _, array in tree_flatten(function(*rest))]

    return flat, list(leaves)


@contextmanager
def _fast_as_nodes(marks: dict[str, mx.array]) -> Iterator[None]:
    """Let each operation of mx.fast stand in the graph as one node, which is known by its last input."""
    with ExitStack() as stack:
        for name, mark in marks.items():
            stack.enter_context(patch.object(mx.fast, name, _stand_in(name, mark)))
        yield


def _stand_in(name: str, mark: mx.array) -> Callable[..., mx.array]:
    def call(x: mx.array, *args: Any, **kwargs: Any) -> mx.array:
        others = [value for value in (*args, *kwargs.values()) if isinstance(value, mx.array)]
        promoting = [] if name == "rope" else [other for other in others if other.dtype != mx.bool_]
        dtype = mx.result_type(x, *promoting)  # as of the operation itself: a float32 weight makes a float32 result
        return mx.depends(x if x.dtype == dtype else x.astype(dtype), [*others, mark])

    return call


def _node(event: dict[str, Any], marks: dict[str, str]) -> Node:
    inputs = tuple(name for name, *_ in event["inputs"])
    outputs = tuple(name for name, *_ in event["outputs"])
    if event["name"] == "Depends" and inputs[-1] in marks:
        return Node(marks[inputs[-1]], inputs[:-1], outputs, ())
    return Node(event["name"], inputs, outputs, tuple(event["arguments"]))


def _product(shape: tuple[int, ...]) -> int:
    result = 1
    for size in shape:
        result *= size
    return result

"""Builder of ONNX graphs with weights in float32 or int8.

Opset 17 is the first with LayerNormalization, and every current runtime reads it.
"""

import importlib
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from modernbert.extras import missing

__all__ = ["OPSET", "Graph", "needed", "write_model"]

OPSET = 17
_IR = 8  # the version that came with opset 17
# A protobuf file has at most 2 GiB; weights of larger models are in a file beside it.
_MAX_FILE_BYTES = 2_000_000_000
# Weights are integers from -64 to 64, so the sum of two products with activations from 0 to 255 fits into 16 bits. With
# eight bits, a processor with AVX2 and without VNNI saturates the sum and computes other values.
_WEIGHT_LEVELS = 64
_ACTIVATION_LEVELS, _ACTIVATION_ZERO = 127, 128


class Graph:
    """Nodes in the order of computation.

    `kept` is None for float32; else all matrices are in int8 except those whose names match one of these patterns.
    """

    def __init__(self, kept: Sequence[str] | None = None) -> None:
        self.kept = kept
        self.scope = "model"
        """The prefix of node names."""
        self._onnx = needed("onnx")
        self._nodes: list[Any] = []
        self._weights: dict[str, Any] = {}

    def node(self, kind: str, *inputs: str, out: str | None = None, **attributes: int | float | list[int]) -> str:
        """Add a node with its attributes; return the name of its output."""
        return self.nodes(kind, *inputs, outs=[out or f"{self.scope}.{kind}.{len(self._nodes)}"], **attributes)[0]

    def nodes(self, kind: str, *inputs: str, outs: Sequence[str], **attributes: int | float | list[int]) -> list[str]:
        """Add a node with several outputs; return their names."""
        names = list(outs)
        self._nodes.append(self._onnx.helper.make_node(kind, list(inputs), names, name=names[0], **attributes))
        return names

    def halves(self, x: str, axis: int, sizes: Sequence[int] = ()) -> list[str]:
        """Split in two along an axis, in the middle or by `sizes`."""
        stem = f"{self.scope}.Split.{len(self._nodes)}"
        inputs = [x, self.ints(*sizes)] if sizes else [x]
        return self.nodes("Split", *inputs, outs=[f"{stem}.first", f"{stem}.second"], axis=axis)

    def ints(self, *values: int) -> str:
        """Return the name of a constant list of integers; each is stored once."""
        return self.weight(f"ints[{','.join(map(str, values))}]", np.array(values, dtype=np.int64))

    def number(self, value: float | int) -> str:
        """Return the name of a constant scalar, float32 or int64."""
        dtype = np.int64 if isinstance(value, int) else np.float32
        return self.weight(f"number[{value}]", np.array(value, dtype=dtype))

    def weight(self, name: str, values: np.ndarray | Tensor) -> str:
        """Store values under a name, once; return the name."""
        if name not in self._weights:
            array = values.detach().float().numpy() if isinstance(values, Tensor) else values
            self._weights[name] = self._onnx.numpy_helper.from_array(np.asarray(array, order="C"), name)
        return name

    def norm(self, x: str, name: str, norm: nn.LayerNorm, out: str | None = None) -> str:
        """Add a LayerNorm over the last axis."""
        return self.node(
            "LayerNormalization", x, self.weight(f"{name}.weight", norm.weight), out=out, axis=-1, epsilon=norm.eps
        )

    def gelu(self, x: str) -> str:
        """Add the exact GELU, in the pattern that runtimes fuse."""
        erf = self.node("Erf", self.node("Div", x, self.number(2**0.5)))
        return self.node("Mul", self.node("Mul", x, self.node("Add", erf, self.number(1.0))), self.number(0.5))

    def rows_of(self, ids: str, name: str, table: Tensor) -> str:
        """Add an embedding lookup."""
        if not self._is_int8(name):
            return self.node("Gather", self.weight(f"{name}.weight", table), ids)
        levels, scales = self._in_int8(name, table)
        found = self.node("Cast", self.node("Gather", levels, ids), to=self._onnx.TensorProto.FLOAT)
        return self.node("Mul", found, self.node("Gather", scales, ids))

    def linear(
        self, x: str, name: str, linear: nn.Linear, *, tied_to: str | None = None, out: str | None = None
    ) -> str:
        """Add a linear layer; `tied_to` is the name of the embedding that is its weight."""
        weight, bias = linear.weight, linear.bias
        last = out if bias is None else None
        if self._is_int8(tied_to or name):
            found = self._int8_product(x, *self._in_int8(tied_to or name, weight), out=last)
        elif tied_to:
            transposed = self.node("Transpose", self.weight(f"{tied_to}.weight", weight), perm=[1, 0])
            found = self.node("MatMul", x, transposed, out=last)
        else:
            found = self.node("MatMul", x, self.weight(f"{name}.weight", weight.T), out=last)
        return found if bias is None else self.node("Add", found, self.weight(f"{name}.bias", bias), out=out)

    def model(self, inputs: Sequence[Any], outputs: Sequence[Any], metadata: dict[str, str]) -> Any:
        """Return the ONNX model; `inputs` and `outputs` are results of `value`."""
        helper = self._onnx.helper
        graph = helper.make_graph(self._nodes, "modernbert", list(inputs), list(outputs), list(self._weights.values()))
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=_IR)
        model.producer_name = "modernbert"
        helper.set_model_props(model, metadata)
        return model

    def value(self, name: str, shape: Sequence[str | int], *, whole: bool = False) -> Any:
        """Describe an input or output of the graph: float32, or int64 if `whole`; axes of any size have names."""
        kind = self._onnx.TensorProto.INT64 if whole else self._onnx.TensorProto.FLOAT
        return self._onnx.helper.make_tensor_value_info(name, kind, list(shape))

    def cast(self, x: str, to: str) -> str:
        """Add a cast to FLOAT, INT64 or BOOL."""
        return self.node("Cast", x, to=getattr(self._onnx.TensorProto, to))

    def _is_int8(self, name: str) -> bool:
        return self.kept is not None and not any(fnmatch(name, pattern) for pattern in self.kept)

    def _in_int8(self, name: str, table: Tensor) -> tuple[str, str]:
        """Store a matrix as int8, with a scale per row."""
        rows = table.detach().float().numpy()
        scales = np.maximum(np.abs(rows).max(axis=1, keepdims=True), np.finfo(np.float32).tiny) / _WEIGHT_LEVELS
        levels = np.round(rows / scales).astype(np.int8)
        return self.weight(f"{name}.levels", levels), self.weight(f"{name}.scales", scales.astype(np.float32))

    def _int8_product(self, x: str, levels: str, scales: str, out: str | None) -> str:
        """Add an int8 GEMM.

        Activations have a scale per token, so a text's outputs do not depend on its batch, and outliers of one token do
        not cost the others precision.
        """
        largest = self.node(
            "Max", self.node("ReduceMax", self.node("Abs", x), axes=[-1], keepdims=1), self.number(1e-30)
        )
        steps = self.node("Mul", largest, self.number(1 / _ACTIVATION_LEVELS))
        zero = self.weight("zero", np.array(_ACTIVATION_ZERO, dtype=np.uint8))
        whole = self.node("QuantizeLinear", self.node("Div", x, steps), self.number(1.0), zero)
        product = self.node("MatMulInteger", whole, self.node("Transpose", levels, perm=[1, 0]), zero)
        scaled = self.node("Mul", self.cast(product, "FLOAT"), self.node("Squeeze", scales, self.ints(1)))
        return self.node("Mul", scaled, steps, out=out)


def needed(name: str) -> Any:
    """Import a library of the extra `export`.

    Raises: InputError if it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError:
        raise missing("export", name) from None


def write_model(model: Any, path: Path) -> None:
    """Write a graph to one file, or with its weights in a second file if it is too large."""
    onnx = needed("onnx")
    beside = path.with_name(f"{path.name}_data")
    beside.unlink(missing_ok=True)  # onnx appends to an existing file
    size = sum(len(weight.raw_data) for weight in model.graph.initializer)
    onnx.save_model(model, path, save_as_external_data=size > _MAX_FILE_BYTES, location=beside.name)

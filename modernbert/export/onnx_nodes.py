"""An ONNX graph while it is written: nodes one after another, and the weights they name.

In: kinds of nodes and the names of their inputs; weights. Out: a model of ONNX. A file of its own because how a product
or a table is stored, in float32 or in int8, is no matter of the model's.

Opset 17 is the first with LayerNormalization and has all else that is wanted; every runtime of the last years reads it.
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
_IR = 8  # of the releases that brought opset 17
# What one file of protobuf holds at most is 2 GiB; weights of larger models lie beside it.
_LARGEST_FILE = 2_000_000_000
# Weights are whole numbers from -64 to 64: two products of such with activations, 0 to 255, add up in 16 bits. With all
# eight bits, a processor with AVX2 and no VNNI clips the sum, and computes other values than the one that was tested.
_WEIGHT_LEVELS = 64
_ACTIVATION_LEVELS, _ACTIVATION_ZERO = 127, 128


class Graph:
    """Nodes in the order in which they are computed.

    `kept` is None for float32 throughout; else products and tables are in int8, but for those whose names fit one of
    these patterns.
    """

    def __init__(self, kept: Sequence[str] | None = None) -> None:
        self.kept = kept
        self.scope = "model"
        """Names of nodes begin with it."""
        self._onnx = needed("onnx")
        self._nodes: list[Any] = []
        self._weights: dict[str, Any] = {}

    def node(self, kind: str, *inputs: str, out: str | None = None, **attributes: int | float | list[int]) -> str:
        """Add a node with its attributes, as the standard names them; return the name of what it computes."""
        return self.nodes(kind, *inputs, outs=[out or f"{self.scope}.{kind}.{len(self._nodes)}"], **attributes)[0]

    def nodes(self, kind: str, *inputs: str, outs: Sequence[str], **attributes: int | float | list[int]) -> list[str]:
        """Add a node that computes several things; return their names."""
        names = list(outs)
        self._nodes.append(self._onnx.helper.make_node(kind, list(inputs), names, name=names[0], **attributes))
        return names

    def halves(self, x: str, axis: int, sizes: Sequence[int] = ()) -> list[str]:
        """Cut in two along an axis, in the middle or where it is said."""
        stem = f"{self.scope}.Split.{len(self._nodes)}"
        inputs = [x, self.ints(*sizes)] if sizes else [x]
        return self.nodes("Split", *inputs, outs=[f"{stem}.first", f"{stem}.second"], axis=axis)

    def ints(self, *values: int) -> str:
        """Return the name of a list of whole numbers, each list once in a graph."""
        return self.weight(f"ints[{','.join(map(str, values))}]", np.array(values, dtype=np.int64))

    def number(self, value: float | int) -> str:
        """Return the name of one number, float32 or int64 as it is given."""
        dtype = np.int64 if isinstance(value, int) else np.float32
        return self.weight(f"number[{value}]", np.array(value, dtype=dtype))

    def weight(self, name: str, values: np.ndarray | Tensor) -> str:
        """Store values under a name, if they are not there yet; return the name."""
        if name not in self._weights:
            array = values.detach().float().numpy() if isinstance(values, Tensor) else values
            self._weights[name] = self._onnx.numpy_helper.from_array(np.asarray(array, order="C"), name)
        return name

    def norm(self, x: str, name: str, norm: nn.LayerNorm, out: str | None = None) -> str:
        """Add a norm over the last axis."""
        return self.node(
            "LayerNormalization", x, self.weight(f"{name}.weight", norm.weight), out=out, axis=-1, epsilon=norm.eps
        )

    def gelu(self, x: str) -> str:
        """Add the exact GELU, in the words that runtimes know again as one."""
        bent = self.node("Erf", self.node("Div", x, self.number(2**0.5)))
        return self.node("Mul", self.node("Mul", x, self.node("Add", bent, self.number(1.0))), self.number(0.5))

    def rows_of(self, ids: str, name: str, table: Tensor) -> str:
        """Look rows of a table up."""
        if not self._is_int8(name):
            return self.node("Gather", self.weight(f"{name}.weight", table), ids)
        levels, scales = self._in_int8(name, table)
        found = self.node("Cast", self.node("Gather", levels, ids), to=self._onnx.TensorProto.FLOAT)
        return self.node("Mul", found, self.node("Gather", scales, ids))

    def linear(
        self, x: str, name: str, linear: nn.Linear, *, tied_to: str | None = None, out: str | None = None
    ) -> str:
        """Add a linear layer; `tied_to` names the table that is its weight."""
        weight, bias = linear.weight, linear.bias
        last = out if bias is None else None
        if self._is_int8(tied_to or name):
            found = self._int8_product(x, *self._in_int8(tied_to or name, weight), out=last)
        elif tied_to:
            turned = self.node("Transpose", self.weight(f"{tied_to}.weight", weight), perm=[1, 0])
            found = self.node("MatMul", x, turned, out=last)
        else:
            found = self.node("MatMul", x, self.weight(f"{name}.weight", weight.T), out=last)
        return found if bias is None else self.node("Add", found, self.weight(f"{name}.bias", bias), out=out)

    def model(self, inputs: Sequence[Any], outputs: Sequence[Any], metadata: dict[str, str]) -> Any:
        """Return the finished model; `inputs` and `outputs` are what `value` makes."""
        helper = self._onnx.helper
        graph = helper.make_graph(self._nodes, "modernbert", list(inputs), list(outputs), list(self._weights.values()))
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=_IR)
        model.producer_name = "modernbert"
        helper.set_model_props(model, metadata)
        return model

    def value(self, name: str, shape: Sequence[str | int], *, whole: bool = False) -> Any:
        """Describe an input or output: float32, or int64 if `whole`; axes of any size have names."""
        kind = self._onnx.TensorProto.INT64 if whole else self._onnx.TensorProto.FLOAT
        return self._onnx.helper.make_tensor_value_info(name, kind, list(shape))

    def cast(self, x: str, to: str) -> str:
        """Add a cast to FLOAT, INT64 or BOOL."""
        return self.node("Cast", x, to=getattr(self._onnx.TensorProto, to))

    def _is_int8(self, name: str) -> bool:
        return self.kept is not None and not any(fnmatch(name, pattern) for pattern in self.kept)

    def _in_int8(self, name: str, table: Tensor) -> tuple[str, str]:
        """Store a matrix as whole numbers, and a scale for each row."""
        rows = table.detach().float().numpy()
        scales = np.maximum(np.abs(rows).max(axis=1, keepdims=True), np.finfo(np.float32).tiny) / _WEIGHT_LEVELS
        levels = np.round(rows / scales).astype(np.int8)
        return self.weight(f"{name}.levels", levels), self.weight(f"{name}.scales", scales.astype(np.float32))

    def _int8_product(self, x: str, levels: str, scales: str, out: str | None) -> str:
        """Multiply in whole numbers.

        Each token has a scale of its own, so that what a text becomes does not hang on its neighbours in the batch, and
        a token with a few large numbers does not cost the others their precision.
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
    """Import a library of the extra.

    Raises: InputError if it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError:
        raise missing("export", name) from None


def write_model(model: Any, path: Path) -> None:
    """Write a graph as one file, or where it is too large with its weights beside it."""
    onnx = needed("onnx")
    beside = path.with_name(f"{path.name}_data")
    beside.unlink(missing_ok=True)  # what is there would be appended to
    size = sum(len(weight.raw_data) for weight in model.graph.initializer)
    onnx.save_model(model, path, save_as_external_data=size > _LARGEST_FILE, location=beside.name)

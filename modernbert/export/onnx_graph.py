"""A ModernBERT as a graph of standard ONNX operators.

The inputs are `input_ids` and `attention_mask` [rows, columns], of any size and padded on the right. Padding is masked
as a key; outputs at padding are finite and meaningless. Local layers attend in blocks to bands of keys, so compute and
memory are linear in the number of columns.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from modernbert.export.onnx_nodes import Graph
from modernbert.model.config import ModelConfig
from modernbert.model.interface import FILL_MASK, Model
from modernbert.tasks.task import classifier_task

__all__ = ["Output", "build", "outputs_of"]

_HIDDEN = "last_hidden_state"
# The additive mask: far below any score, and finite in half precision. A query whose keys are all masked averages them.
_MASKED = -30_000.0


@dataclass(frozen=True)
class Output:
    """An output of a graph, per token or per row; `width` is None for scalars."""

    name: str
    of_tokens: bool
    width: int | None

    @property
    def shape(self) -> list[str | int]:
        """The axes; an axis of any size has a name."""
        return ["rows", *(["columns"] if self.of_tokens else []), *([] if self.width is None else [self.width])]


def outputs_of(model: Model) -> list[Output]:
    """Return the outputs of a model's graph, with the names that other libraries look for."""
    if model.task is not None and model.is_classifier:
        names = classifier_task(model.task).output_names
        if len(names) > 1:
            return [Output(name, model.scores_tokens, None) for name in names]
    if model.output_layer is not None:
        return [Output("logits", model.scores_tokens, model.output_layer.out_features)]
    hidden = Output(_HIDDEN, True, model.hidden_size)
    if model.pooling is None:
        return [hidden]
    if model.pooling == "tokens":
        return [Output("token_embeddings", True, model.vector_size)]
    return [hidden, Output("sentence_embedding", False, model.vector_size)]


def build(model: Model, kept: list[str] | None = None) -> Any:
    """Return the graph of a model; `kept` is None for float32, else patterns of the weights that are not in int8.

    Raises: InputError if onnx is not installed.
    """
    graph = Graph(kept)
    _head(graph, model, _encode(graph, model.encoder))
    inputs = [graph.value(name, ["rows", "columns"], whole=True) for name in ("input_ids", "attention_mask")]
    outputs = [graph.value(output.name, output.shape) for output in outputs_of(model)]
    return graph.model(inputs, outputs, {"padding": "right"})


def _encode(graph: Graph, encoder: Model) -> str:
    """Add the encoder; return its hidden states [rows, columns, D]."""
    graph.scope = "embeddings"
    embeddings: Any = encoder.embeddings
    found = graph.rows_of("input_ids", "embeddings.tok_embeddings", embeddings.tok_embeddings.weight)
    hidden = graph.norm(found, "embeddings.norm", embeddings.norm)
    attends: dict[bool, Callable[[str], str]] = {
        True: _Global(graph, encoder.config),
        False: _Local(graph, encoder.config),
    }
    for number, layer in enumerate(encoder.layers):
        hidden = _layer(graph, f"layers.{number}", layer, hidden, attends[encoder.config.is_global(number)])
    graph.scope = "head"
    return graph.norm(hidden, "final_norm", encoder.final_norm, out=_HIDDEN)


def _layer(graph: Graph, name: str, layer: Any, hidden: str, attend: Callable[[str], str]) -> str:
    """Add a layer; return the residual stream."""
    graph.scope = name
    normed = hidden
    if not isinstance(layer.attn_norm, nn.Identity):
        normed = graph.norm(hidden, f"{name}.attn_norm", layer.attn_norm)
    attn_out = attend(graph.linear(normed, f"{name}.attn.Wqkv", layer.attn.Wqkv))
    hidden = graph.node("Add", hidden, graph.linear(attn_out, f"{name}.attn.Wo", layer.attn.Wo))
    normed = graph.norm(hidden, f"{name}.mlp_norm", layer.mlp_norm)
    first, gate = graph.halves(graph.linear(normed, f"{name}.mlp.Wi", layer.mlp.Wi), axis=-1)
    gated = graph.node("Mul", graph.gelu(first), gate)
    return graph.node("Add", hidden, graph.linear(gated, f"{name}.mlp.Wo", layer.mlp.Wo))


class _Global:
    """Global attention; the mask and the RoPE angles are computed once for all global layers."""

    def __init__(self, graph: Graph, config: ModelConfig) -> None:
        graph.scope = "global"
        self.graph, self.config = graph, config
        self.angles = _angles(graph, config.head_width, config.global_rope_theta)
        real = graph.node("Unsqueeze", graph.cast("attention_mask", "BOOL"), graph.ints(1, 2))
        self.mask = graph.node("Where", real, graph.number(0.0), graph.number(_MASKED))

    def __call__(self, qkv: str) -> str:
        """Map [rows, columns, 3D] to [rows, columns, D]."""
        q, k, v = _heads(self.graph, qkv, self.config, self.angles)
        return _merged(self.graph, _attend(self.graph, q, k, v, self.mask, axes=5), self.config)


class _Local:
    """Attention of every token to those at most half a window away.

    A block has half a window of tokens, or the row if that is shorter; its keys are in the block and its two neighbors.
    """

    def __init__(self, graph: Graph, config: ModelConfig) -> None:
        graph.scope = "local"
        self.graph, self.config = graph, config
        self.angles = _angles(graph, config.head_width, config.local_rope_theta)
        side = config.window[0]
        self.columns = _columns(graph)
        self.block = graph.node("Min", self.columns, graph.ints(side))
        # -columns mod block: ONNX's Mod has the sign of the divisor.
        self.tail = graph.node("Mod", graph.node("Neg", self.columns), self.block)
        self.around = self._padding(self.block, graph.node("Add", self.block, self.tail))
        self.behind = self._padding(graph.ints(0), self.tail)
        twice = graph.node("Add", self.block, self.block)
        places = [_range(graph, graph.ints(0), self.block), _range(graph, graph.node("Neg", self.block), twice)]
        distance = graph.node(
            "Sub", graph.node("Unsqueeze", places[0], graph.ints(1)), graph.node("Unsqueeze", places[1], graph.ints(0))
        )
        near = graph.node("LessOrEqual", graph.node("Abs", distance), graph.ints(side))
        real = graph.node("Unsqueeze", graph.cast("attention_mask", "FLOAT"), graph.ints(0, 2, 4))
        real = graph.node("Transpose", self._bands(real, 1), perm=[0, 1, 2, 3, 5, 4])
        seen = graph.node("And", graph.cast(real, "BOOL"), near)
        self.mask = graph.node("Where", seen, graph.number(0.0), graph.number(_MASKED))

    def __call__(self, qkv: str) -> str:
        """Map [rows, columns, 3D] to [rows, columns, D]."""
        graph, width = self.graph, self.config.head_width
        q, k, v = _heads(graph, qkv, self.config, self.angles)
        queries = self._blocks(graph.node("Pad", q, self.behind), width)
        attn_out = _attend(graph, queries, self._bands(k, width), self._bands(v, width), self.mask, axes=6)
        flat = graph.node("Reshape", attn_out, graph.ints(0, 0, 0, -1, width))
        return _merged(graph, graph.node("Slice", flat, graph.ints(0), self.columns, graph.ints(3)), self.config)

    def _padding(self, before: str, behind: str) -> str:
        """Return the pads of [1, rows, H, columns, K] before and behind the columns."""
        no, none = self.graph.ints(0), self.graph.ints(0, 0, 0)
        return self.graph.node("Concat", none, before, no, none, behind, no, axis=0)

    def _blocks(self, x: str, width: int) -> str:
        """[1, rows, H, columns, K] -> [1, rows, H, blocks, B, K]."""
        graph = self.graph
        shape = graph.node("Concat", graph.ints(0, 0, 0, -1), self.block, graph.ints(width), axis=0)
        return graph.node("Reshape", x, shape)

    def _bands(self, x: str, width: int) -> str:
        """[1, rows, H, columns, K] -> [1, rows, H, blocks, 3 B, K]: a block between its neighbors."""
        graph = self.graph
        blocks = self._blocks(graph.node("Pad", x, self.around), width)
        ends = [(0, -2), (1, -1), (2, np.iinfo(np.int64).max)]
        parts = [graph.node("Slice", blocks, graph.ints(a), graph.ints(int(b)), graph.ints(3)) for a, b in ends]
        return graph.node("Concat", *parts, axis=4)


def _columns(graph: Graph) -> str:
    """Return the number of columns, shape [1]."""
    return graph.node("Slice", graph.node("Shape", "input_ids"), graph.ints(1), graph.ints(2))


def _range(graph: Graph, start: str, end: str) -> str:
    """Return the integers from `start` to `end`, which have shape [1]."""
    return graph.node("Range", *(graph.node("Squeeze", each, graph.ints(0)) for each in (start, end)), graph.number(1))


def _angles(graph: Graph, head_width: int, theta: float) -> tuple[str, str]:
    """Return cosines and sines of the positions, [columns, K/2]."""
    powers = torch.arange(0, head_width, 2, dtype=torch.int64).float() / head_width
    frequencies = graph.weight(f"frequencies[{theta}]", 1.0 / theta**powers)
    places = graph.cast(_range(graph, graph.ints(0), _columns(graph)), "FLOAT")
    angles = graph.node("Mul", graph.node("Unsqueeze", places, graph.ints(1)), frequencies)
    return graph.node("Cos", angles), graph.node("Sin", angles)


def _heads(graph: Graph, qkv: str, config: ModelConfig, angles: tuple[str, str]) -> tuple[str, str, str]:
    """[rows, columns, 3D] -> queries, keys and values [1, rows, H, columns, K], the first two rotated."""
    shape = graph.ints(0, 0, 3, config.num_attention_heads, config.head_width)
    transposed = graph.node("Transpose", graph.node("Reshape", qkv, shape), perm=[2, 0, 3, 1, 4])
    both, v = graph.halves(transposed, axis=0, sizes=(2, 1))
    cosines, sines = angles
    first, second = graph.halves(both, axis=-1)
    rotated = graph.node(
        "Concat",
        graph.node("Sub", graph.node("Mul", first, cosines), graph.node("Mul", second, sines)),
        graph.node("Add", graph.node("Mul", second, cosines), graph.node("Mul", first, sines)),
        axis=-1,
    )
    q, k = graph.halves(rotated, axis=0)
    return graph.node("Mul", q, graph.number(config.head_width**-0.5)), k, v


def _attend(graph: Graph, q: str, k: str, v: str, mask: str, axes: int) -> str:
    """Add masked attention over tensors with `axes` axes, of which the last two are tokens and K."""
    transposed = graph.node("Transpose", k, perm=[*range(axes - 2), axes - 1, axes - 2])
    scores = graph.node("Add", graph.node("MatMul", q, transposed), mask)
    return graph.node("MatMul", graph.node("Softmax", scores, axis=-1), v)


def _merged(graph: Graph, attn_out: str, config: ModelConfig) -> str:
    """[1, rows, H, columns, K] -> [rows, columns, D]."""
    transposed = graph.node("Transpose", attn_out, perm=[1, 3, 0, 2, 4])
    return graph.node("Reshape", transposed, graph.ints(0, 0, config.hidden_size))


def _head(graph: Graph, model: Model, hidden: str) -> None:
    """Add the head or the pooling; outputs have the names of `outputs_of`."""
    outputs = [output.name for output in outputs_of(model)]
    if model.pooling is not None:
        if model.pooling != "tokens":
            hidden = _pooled(graph, hidden, model.pooling)
        if model.projection is not None:
            hidden = graph.linear(hidden, "projection", model.projection)
        size = graph.node("ReduceL2", hidden, axes=[-1], keepdims=1)
        # The bound is that of torch's `normalize`: a vector of zeros stays one.
        size = graph.node("Max", size, graph.number(1e-12))
        graph.node("Div", hidden, size, out=outputs[-1])
    elif model.output_layer is not None:
        if not model.scores_tokens:
            hidden = _pooled(graph, hidden, model.encoder.config.classifier_pooling)
        rows = _predicted(graph, model.get_submodule("head"), hidden)
        if model.task == FILL_MASK:
            graph.linear(rows, "decoder", model.output_layer, tied_to="embeddings.tok_embeddings", out=outputs[0])
        elif len(outputs) == 1:
            graph.linear(rows, "classifier", model.output_layer, out=outputs[0])
        else:
            scores = graph.halves(graph.linear(rows, "classifier", model.output_layer), axis=-1)
            for score, name in zip(scores, outputs, strict=True):
                graph.node("Squeeze", score, graph.ints(-1), out=name)


def _predicted(graph: Graph, head: Any, rows: str) -> str:
    return graph.norm(graph.gelu(graph.linear(rows, "head.dense", head.dense)), "head.norm", head.norm)


def _pooled(graph: Graph, hidden: str, pooling: str) -> str:
    """[rows, columns, D] -> [rows, D]; a row of padding only becomes zeros, or its first token."""
    if pooling == "cls":
        return graph.node("Gather", hidden, graph.number(0), axis=1)
    real = graph.node("Unsqueeze", graph.cast("attention_mask", "FLOAT"), graph.ints(2))
    total = graph.node("ReduceSum", graph.node("Mul", hidden, real), graph.ints(1), keepdims=0)
    count = graph.node("ReduceSum", real, graph.ints(1), keepdims=0)
    return graph.node("Div", total, graph.node("Max", count, graph.number(1.0)))

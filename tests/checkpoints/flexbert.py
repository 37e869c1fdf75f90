"""FlexBERT in plain torch, as the reference repository computes it, to compare converted checkpoints with."""

from collections import OrderedDict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SETTINGS: dict[str, Any] = {
    "vocab_size": 512, "num_hidden_layers": 7, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4,
    "attention_layer": "rope", "attn_out_dropout_prob": 0.1, "bert_layer": "prenorm", "embedding_layer": "sans_pos",
    "mlp_layer": "glu", "normalization": "layernorm", "norm_kwargs": {"eps": 1e-6, "bias": False},
    "hidden_act": "gelu", "head_pred_act": "gelu", "rotary_emb_dim": None, "rotary_emb_base": 160000.0,
    "local_attn_rotary_emb_base": 10000.0, "rotary_emb_scale_base": None, "rotary_emb_interleaved": False,
    "sliding_window": 8, "global_attn_every_n_layers": 3, "max_position_embeddings": 512,
}  # fmt: skip


def _norm() -> nn.LayerNorm:
    return nn.LayerNorm(SETTINGS["hidden_size"], eps=SETTINGS["norm_kwargs"]["eps"], bias=False)


def _linear(width: int, out: int) -> nn.Linear:
    return nn.Linear(width, out, bias=False)


class Attention(nn.Module):
    def __init__(self, number: int) -> None:
        super().__init__()
        width = SETTINGS["hidden_size"]
        self.is_local = number % SETTINGS["global_attn_every_n_layers"] != 0
        self.Wqkv, self.Wo = _linear(width, 3 * width), _linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        heads, length = SETTINGS["num_attention_heads"], len(x)
        qkv = self.Wqkv(x).view(length, 3, heads, -1)
        theta = SETTINGS["local_attn_rotary_emb_base"] if self.is_local else SETTINGS["rotary_emb_base"]
        q, k = (self.turn(part, theta) for part in qkv.unbind(1)[:2])
        apart = (torch.arange(length)[:, None] - torch.arange(length)).abs()
        seen = apart <= SETTINGS["sliding_window"] // 2 if self.is_local else apart >= 0
        q, k, v = (part.transpose(0, 1) for part in (q, k, qkv[:, 2]))
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        return self.Wo(mixed.transpose(0, 1).flatten(1))

    @staticmethod
    def turn(x: Tensor, theta: float) -> Tensor:
        half = x.shape[-1] // 2
        angles = torch.arange(len(x))[:, None] * theta ** (-torch.arange(half, dtype=torch.float64) / half)
        cosines, sines = angles.cos()[:, None].to(x.dtype), angles.sin()[:, None].to(x.dtype)
        first, second = x.chunk(2, dim=-1)
        return torch.cat((first * cosines - second * sines, first * sines + second * cosines), dim=-1)


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        width, inner = SETTINGS["hidden_size"], SETTINGS["intermediate_size"]
        self.Wi, self.Wo = _linear(width, 2 * inner), _linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        given, gate = self.Wi(x).chunk(2, dim=-1)
        return self.Wo(F.gelu(given) * gate)


class Layer(nn.Module):
    def __init__(self, number: int) -> None:
        super().__init__()
        self.attn_norm = nn.Identity() if number == 0 else _norm()
        self.attn, self.mlp_norm, self.mlp = Attention(number), _norm(), Mlp()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.attn_norm(x))
        return x + self.mlp(self.mlp_norm(x))


class FlexBert(nn.Module):
    """Composer's wrapping, FlexBERT for masked language modelling in it, and its encoder in that."""

    def __init__(self) -> None:
        super().__init__()
        bert = nn.Module()
        bert.embeddings = nn.Module()
        bert.embeddings.tok_embeddings = nn.Embedding(SETTINGS["vocab_size"], SETTINGS["hidden_size"])
        bert.embeddings.norm = _norm()
        bert.encoder = nn.Module()
        bert.encoder.layers = nn.ModuleList(Layer(number) for number in range(SETTINGS["num_hidden_layers"]))
        bert.final_norm = _norm()
        self.model = nn.Module()
        self.model.bert = bert
        self.model.head = nn.Module()
        self.model.head.dense, self.model.head.norm = _linear(SETTINGS["hidden_size"], SETTINGS["hidden_size"]), _norm()
        self.model.decoder = nn.Linear(SETTINGS["hidden_size"], SETTINGS["vocab_size"])
        self.model.decoder.weight = bert.embeddings.tok_embeddings.weight
        with torch.no_grad():
            for parameter in self.parameters():
                if parameter.ndim == 1:
                    parameter.add_(torch.randn(parameter.shape) * 0.1)
                else:
                    parameter.copy_(torch.randn(parameter.shape) / parameter.shape[1] ** 0.5)

    def forward(self, tokens: Tensor) -> Tensor:
        bert: Any = self.model.bert
        x = bert.embeddings.norm(bert.embeddings.tok_embeddings(tokens))
        for layer in bert.encoder.layers:
            x = layer(x)
        x = bert.final_norm(x)
        return self.model.decoder(self.model.head.norm(F.gelu(self.model.head.dense(x))))


def state_of(model: nn.Module) -> "OrderedDict[str, Tensor]":
    return OrderedDict(model.state_dict())


def checkpoint_of(state: Any, settings: dict[str, Any] | None = SETTINGS, **others: Any) -> dict[str, Any]:
    """The content of a Composer checkpoint, with code that unpickling would run."""
    library = {} if settings is None else {"model": {"config": {"file_extension": ".json", "content": settings}}}
    return {
        "rng": [{"python": (3, (1, 2), None)}],
        "state": {"model": state, "integrations": {"huggingface": library}, "optimizers": {}, **others},
    }

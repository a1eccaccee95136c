"""MPNet over packed texts: transformers' own attention of it adds a bias by relative position and knows no packing.

The bias of two tokens depends on how far apart they are. Tokens of a text are neighbours in a line, so that this is
the distance of their places in the line, too: one table by distance serves every line and every layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lorry.model.attention import attend
from lorry.model.packing import PackedLayout


@dataclass(frozen=True)
class RelativePositions:
    """What each attention layer gets in place of transformers' `position_bias`."""

    layout: PackedLayout
    bias_HR: Tensor
    """[heads, 2 * widest line - 1] bias of a key that many places before (first) to after (last) the query."""


def pack(model: Any) -> None:
    """Let an `MPNetModel` take packed texts: `packed_layout` is an argument of its forward call from now on."""
    for layer in model.encoder.layer:
        layer.attention.attn.forward = partial(_attention, layer.attention.attn)
    model.forward = partial(_forward, model)


def _forward(model: Any, input_ids: Tensor, position_ids: Tensor, packed_layout: PackedLayout, **_: Any) -> Any:
    from transformers.modeling_outputs import BaseModelOutput

    encoder, widest = model.encoder, packed_layout.groups[-1].width
    distances_R = torch.arange(1 - widest, widest, device=input_ids.device)
    bias_RH = encoder.relative_attention_bias(encoder.relative_position_bucket(distances_R))
    positions = RelativePositions(packed_layout, bias_RH.t())
    hidden = model.embeddings(input_ids=input_ids, position_ids=position_ids)
    for layer in encoder.layer:
        hidden = layer(hidden, position_bias=positions)[0]
    return BaseModelOutput(last_hidden_state=hidden)


def _attention(module: Any, hidden: Tensor, _: None, position_bias: RelativePositions, **__: Any) -> tuple[Tensor]:
    shape = (*hidden.shape[:-1], -1, module.attention_head_size)
    query, key, value = (project(hidden).view(shape).transpose(1, 2) for project in (module.q, module.k, module.v))
    out, _none = attend(
        module, query, key, value, None, packed_layout=position_bias.layout, relative_bias=position_bias.bias_HR
    )
    return (module.o(out.flatten(2)),)

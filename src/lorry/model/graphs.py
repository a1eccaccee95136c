"""A training step's pass through the layers as CUDA graphs: launched as a whole, forward and backward.

The operations of a pass depend on nothing but the shape of its layout, and few shapes occur where lines are spare
(`lay_out`). A shape's first pass runs as usual; the second is captured, by PyTorch's `make_graphed_callables`: from
then on the token ids and what lies in which place are copied to where the graph reads them. Pooling and loss, whose
sizes differ from batch to batch, stay as they are.

All graphs share memory, which holds what one forward pass keeps for its backward pass. So a pass's backward pass has to
come before the next pass, and its gradients have to be used before the next backward pass: a step that encodes its
batch in one pass does so, one in parts does not (see `update.py`).
"""

from __future__ import annotations

import gc
import logging
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from lorry.hardware import COPYING
from lorry.model.encoder import Encoder, Hidden
from lorry.model.packing import PackedLayout

log = logging.getLogger("lorry")

MAX_GRAPHS = 16  # each keeps its gradients and its output
MAX_PLACES = 1 << 15  # of a pass: a larger one takes the GPU longer than the CPU takes to launch it


class PassGraphs:
    """Calls `Encoder.hidden`, through a graph where there is one for the shape."""

    def __init__(self, hidden: Hidden, weights: Iterable[nn.Parameter]) -> None:
        """Begin without graphs.

        Args:
            hidden: Returns the last layer's output [T, D] for token ids [T] and their layout.
            weights: What gets gradients; they are to be changed in place.
        """
        self._hidden, self._weights = hidden, list(weights)
        self._seen: Counter[Any] = Counter()  # passes by shape
        self._graphs: dict[Any, Any] = {}  # what they return is untyped
        self._left = MAX_GRAPHS
        self._pool = torch.cuda.graph_pool_handle()

    @classmethod
    def of(cls, encoder: Encoder) -> PassGraphs | None:
        """Return graphs for the encoder's passes, or None, with a warning, where there can be none."""
        if encoder.device.type != "cuda":
            reason = "there is no GPU"
        elif not encoder.packs:
            reason = f"{encoder.base.model_type} models cannot be packed"
        else:
            return cls(encoder.hidden, encoder.trainable().values())
        log.warning("cuda_graphs has no effect: %s", reason)
        return None

    def __call__(self, ids_T: Tensor, layout: PackedLayout) -> Tensor:
        """Return the last layer's output [T, D]; a later call may overwrite it."""
        places = ids_T, layout.texts, layout.positions
        self._seen[layout.shape] += 1
        if self._seen[layout.shape] == 2 and self._left and len(ids_T) <= MAX_PLACES:
            self._capture(places, layout)
        graph = self._graphs.get(layout.shape)
        hidden_TD: Tensor = self._hidden(ids_T, layout) if graph is None else graph(*places)
        return hidden_TD

    @property
    def in_use(self) -> bool:
        """Whether a shape has a graph."""
        return bool(self._graphs)

    def give_up(self, reason: str) -> None:
        """Free the memory of all graphs, and say why; nothing is captured from now on."""
        log.warning("training goes on without CUDA graphs: %s", reason)
        self._left = 0
        self._graphs.clear()
        gc.collect()  # PyTorch's graphs refer to themselves

    def _capture(self, places: tuple[Tensor, ...], layout: PackedLayout) -> None:
        samples = tuple(item.clone() for item in places)  # the graph reads from these
        try:
            # What fails may leave the stream of the capture as the current one. A copy by another thread would fail.
            with COPYING, torch.cuda.stream(torch.cuda.current_stream()):
                self._graphs[layout.shape] = torch.cuda.make_graphed_callables(
                    _Pass(self._hidden, layout, self._weights), samples, allow_unused_input=True, pool=self._pool
                )
            self._left -= 1
        except Exception as error:  # of whatever kind: training can do without
            reason = str(error).split("\n", maxsplit=1)[0]
            self.give_up(f"one could not be captured: {reason}")


class _Pass(nn.Module):
    """A pass of one shape as PyTorch captures it: of nothing but tensors."""

    def __init__(self, hidden: Hidden, layout: PackedLayout, weights: list[nn.Parameter]) -> None:
        super().__init__()
        self.hidden, self.layout = hidden, layout
        self.weights = nn.ParameterList(weights)  # which the graph takes gradients of

    def forward(self, ids_T: Tensor, texts_T: Tensor, positions_T: Tensor) -> Tensor:
        return self.hidden(ids_T, self.layout.with_places(texts_T, positions_T))

"""The encoder: a pre-trained model with LoRA adapters that turns texts into embeddings.

Texts are packed into one row of tokens (see `packing.py`), so that every linear layer works on next to nothing but
real tokens. Architectures that cannot be packed are padded to similar lengths instead. Frozen weights are kept in the
compute precision, adapters in fp32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from lorry.hardware import to_device
from lorry.model import attention, lora, mpnet
from lorry.model.failures import refusing
from lorry.model.model_config import INSTEAD
from lorry.model.packing import LINE_WIDTH, PackedLayout, TokenSequences, lay_out, split
from lorry.model.prepared import prepared
from lorry.model.pretrained import PretrainedModel
from lorry.model.projections import Projections
from lorry.model.standardizing import Standardizer, load_standardizer
from lorry.model.weights import load_model

# Maximum tokens of a forward pass: on a CPU what its caches hold, on a GPU what keeps it busy.
PASS_TOKENS = {"cpu": 4096, "cuda": 1 << 16}
Hidden = Callable[[Tensor, PackedLayout], Tensor]
"""Like `Encoder.hidden`."""
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True)
class Inputs:
    """Texts, ready for the encoder."""

    passes: tuple[tuple[Tensor, PackedLayout], ...]
    """Token ids [T] and layout of each forward pass."""
    place: Tensor | None
    """[n] place of each text among those of all passes, one after another; None for one pass."""


class Encoder(nn.Module):
    """A base model, its pooling, and (once `add_lora` is called) its adapters."""

    def __init__(
        self, base: PretrainedModel, precision: str, device: torch.device, *, master_weights: bool = False
    ) -> None:
        """Load the base model's weights.

        Args:
            base: From `find_pretrained`.
            precision: bf16, fp16 or fp32; see `hardware.choose_precision`.
            device: Where to compute.
            master_weights: Keep the weights in fp32 and compute in `precision` all the same: to train all of them.

        Raises:
            UserError: The files are there, but no text encoder can be read from them.
        """
        super().__init__()
        self.base, self.precision, self.device = base, precision, device
        self.autocast = master_weights and precision != "fp32"
        self.dropouts: list[nn.Module] = []
        self.fused: list[Projections] = []
        self.standardizer: Standardizer | None = None
        self.restore_standardizer()
        self.model: Any = load_model(base, DTYPES["fp32" if master_weights else precision])
        self.packs = base.architecture.packs
        if self.packs and base.architecture.own_attention:
            mpnet.pack(self.model)
        elif self.packs:
            attention.register()
            self.model.set_attn_implementation(attention.NAME)
        self.model.to(device).eval()  # eval: the base model's own dropout stays off
        self.model.requires_grad_(False)
        with refusing(f"{base.name} cannot encode texts", INSTEAD), torch.no_grad():
            self.first_position = self.model.config.pad_token_id + 1 if base.architecture.reserved_positions else 0
            found = self._try()
            if found.shape != (2, self.width):
                raise ValueError(f"two texts give embeddings of shape {list(found.shape)}")
            if not found.isfinite().all():
                raise ValueError(f"its embeddings in {precision} are not finite numbers")

    @property
    def adapted(self) -> bool:
        """Whether there are adapters."""
        return hasattr(self.model, "peft_config")

    @property
    def width(self) -> int:
        """Numbers in an embedding."""
        return int(self.model.config.hidden_size)

    def restore_standardizer(self) -> None:
        """Standardise embeddings as the base model does, or not at all if it does not.

        Raises:
            UserError: The base model's files of it are not as they should be.
        """
        folder = self.base.standardizer
        with refusing(f"{folder} cannot be read", INSTEAD):
            self.standardizer = load_standardizer(folder).to(self.device) if folder else None

    def add_lora(self, *, rank: int, alpha: float, dropout: float, targets: str, seed: int) -> None:
        """Attach adapters; the embeddings stay what they were, since B starts at zero.

        Raises:
            UserError: `targets` match nothing that the embeddings depend on, or the model cannot be trained.
        """
        layers = self._used_layers()
        torch.manual_seed(seed)
        with refusing(f"{self.base.name} takes no adapters", INSTEAD):
            self.model = lora.attach(
                self.model,
                rank=rank,
                alpha=alpha,
                dropout=dropout,
                targets=lora.find_targets(self.model, targets, layers),
            )
        for weight in self.trainable().values():
            weight.data = weight.data.float()  # master weights: an update can be smaller than a step of bf16
        if dropout == 0:
            self.fused = lora.fuse(self.model)
        self.dropouts = [module for name, module in self.model.named_modules() if "lora_dropout" in name]
        with refusing(f"{self.base.name} cannot be trained", INSTEAD), torch.enable_grad():
            torch.autograd.grad(self._try().sum(), list(self.trainable().values()), allow_unused=True)

    def unfreeze(self) -> None:
        """Make every weight that the embeddings depend on trainable: full fine-tuning.

        Raises:
            UserError: The model cannot be trained.
        """
        self.model.requires_grad_(True)
        weights = list(self.model.parameters())
        with refusing(f"{self.base.name} cannot be trained", INSTEAD), torch.enable_grad():
            found = torch.autograd.grad(self._try().sum(), weights, allow_unused=True)
        for weight, gradient in zip(weights, found, strict=True):
            weight.requires_grad_(gradient is not None)

    def trainable(self) -> dict[str, nn.Parameter]:
        """Return the trainable weights by name: the adapters, or those of the model in full fine-tuning."""
        return {name: weight for name, weight in self.model.named_parameters() if weight.requires_grad}

    @torch.no_grad()
    def interpolate(self, tuned: Mapping[str, Tensor], share: float) -> None:
        """Set the trainable weights to base + share * (tuned - base).

        For adapters the update is s * B A, so that B alone is scaled. Wortsman et al. 2022 (WiSE-FT),
        https://arxiv.org/abs/2109.01903

        Args:
            tuned: Weights as `trainable` names them.
            share: 1 for the tuned weights, 0 for those of the base model.
        """
        origin = {} if self.adapted or share == 1 else load_model(self.base, torch.float32).state_dict()
        for name, weight in self.trainable().items():
            if name in origin:
                weight.copy_(origin[name]).lerp_(tuned[name].to(weight), share)
            else:
                weight.copy_(tuned[name] * share if "lora_B" in name else tuned[name])

    def split(
        self, lengths: np.ndarray, *, max_tokens: int | None = None, max_texts: int | None = None
    ) -> list[np.ndarray]:
        """Divide texts of these lengths into parts within the limits given; rows of each part."""
        return split(lengths, max_tokens, max_texts=max_texts, line_width=LINE_WIDTH if self.packs else 0)

    def passes(self, lengths: np.ndarray, max_tokens: int | None = None) -> list[np.ndarray]:
        """Divide texts of these lengths into forward passes that suit the device, of at most `max_tokens` tokens."""
        suitable = PASS_TOKENS[self.device.type]
        return self.split(lengths, max_tokens=suitable if max_tokens is None else min(max_tokens, suitable))

    def embed(self, texts: TokenSequences, *, dropout: bool = False) -> Tensor:
        """Return the embeddings [n, width] of the texts, fp32, in as many forward passes as suit the device.

        Args:
            texts: Their tokens.
            dropout: Drop inputs of the adapters at random, as a training step does where `lora_dropout` is above 0.
        """
        return self.embed_inputs(self.inputs(texts), dropout=dropout)

    def inputs(self, texts: TokenSequences, *, spare_lines: bool = False) -> Inputs:
        """Return what `embed_inputs` takes, on the device: it can be made ahead, in another thread.

        Args:
            texts: Their tokens.
            spare_lines: See `lay_out`; where there is one pass, of packed texts.
        """
        parts = self.passes(texts.lengths)
        if len(parts) == 1:
            return Inputs((self._pass(texts, spare_lines=spare_lines),), None)
        place = np.argsort(np.concatenate(parts))  # of each text among the pieces
        return Inputs(tuple(self._pass(texts.take(part)) for part in parts), to_device(place, self.device))

    def embed_inputs(self, inputs: Inputs, *, dropout: bool = False, hidden: Hidden | None = None) -> Tensor:
        """Return the same as `embed`; `hidden` takes the place of the method of that name, where there is one pass."""
        if len(inputs.passes) > 1:
            hidden = None
        pieces = [self._embed_pass(*one, dropout=dropout, hidden=hidden) for one in inputs.passes]
        return pieces[0] if inputs.place is None else torch.cat(pieces).index_select(0, inputs.place)

    def prepared(self) -> AbstractContextManager[None]:
        """Return a block in which many texts are encoded fastest, without gradients and with weights that stay."""
        return prepared(self.model, DTYPES[self.precision], self.device)

    def embed_pass(self, texts: TokenSequences) -> Tensor:
        """Return the same as `embed`, in one forward pass however long."""
        return self._embed_pass(*self._pass(texts), dropout=False)

    def hidden(self, ids_T: Tensor, layout: PackedLayout) -> Tensor:
        """Return the last layer's output [T, D] for token ids [T] and their layout."""
        layout = replace(layout, biases={})  # as large as the scores: they live no longer than this pass
        lower = torch.autocast(self.device.type, DTYPES[self.precision]) if self.autocast else nullcontext()
        try:
            with lower:
                return self._packed(ids_T, layout) if self.packs else self._padded(ids_T, layout)
        except BaseException:
            for projections in self.fused:
                projections.clear()
            raise

    def _pass(self, texts: TokenSequences, *, spare_lines: bool = False) -> tuple[Tensor, PackedLayout]:
        """Return the token ids [T] of a forward pass over all these texts, and their layout."""
        # An architecture that cannot be packed gets a line per text, and few widths: each is a forward pass.
        alone = {} if self.packs else {"line_width": 0, "width_step": 16}
        layout = lay_out(texts.lengths, self.device, **alone, spare_lines=spare_lines)
        row = np.where(layout.tokens < 0, 0, texts.ids[layout.tokens]).astype(np.int64)
        return to_device(row, self.device), layout

    def _embed_pass(
        self, ids_T: Tensor, layout: PackedLayout, *, dropout: bool, hidden: Hidden | None = None
    ) -> Tensor:
        for module in self.dropouts:
            module.train(dropout)
        hidden_TD = (hidden or self.hidden)(ids_T, layout)
        pooled_ND = _pool(hidden_TD, layout, self.base.pooling).float()
        if self.standardizer is not None:
            pooled_ND = self.standardizer(pooled_ND)
        return functional.normalize(pooled_ND, dim=-1) if self.base.normalize else pooled_ND

    def _try(self) -> Tensor:
        """Return the embeddings of two made-up texts: shows what a model cannot do, before any pair is encoded."""
        ids = np.arange(5) % len(self.model.get_input_embeddings().weight)
        return self.embed_pass(TokenSequences(ids, np.array([3, 2])))

    def _used_layers(self) -> list[str]:
        """Return the linear layers that the embeddings depend on; BERT's pooler, for one, is computed for nothing."""
        modules = self.model.named_modules()
        names: dict[nn.Module, str] = {module: name for name, module in modules if isinstance(module, nn.Linear)}
        marks: dict[str, Tensor] = {}

        def mark(module: nn.Module, _: Any, output: Tensor) -> Tensor:
            marks[names[module]] = zero = output.new_zeros((), requires_grad=True)
            return output + zero

        hooks = [module.register_forward_hook(mark) for module in names]
        try:
            with refusing(f"{self.base.name} cannot be trained", INSTEAD), torch.enable_grad():
                total = self._try().sum()
                found = torch.autograd.grad(total, list(marks.values()), allow_unused=True) if marks else ()
        finally:
            for hook in hooks:
                hook.remove()
        used = {lora.kind_of(name) for name, gradient in zip(marks, found, strict=True) if gradient is not None}
        return [name for name in names.values() if lora.kind_of(name) in used]  # of a kind, an expert may be left out

    def _packed(self, ids_T: Tensor, layout: PackedLayout) -> Tensor:
        positions_T = layout.positions + self.first_position
        out = self.model(
            input_ids=ids_T[None], position_ids=positions_T[None], packed_layout=layout, **self._no_cache()
        )
        hidden_TD: Tensor = out.last_hidden_state[0]
        return hidden_TD

    def _padded(self, ids_T: Tensor, layout: PackedLayout) -> Tensor:
        pieces = []
        for group in layout.groups:
            mask = (group.texts >= 0).long()
            ids = ids_T[group.start : group.end].view(mask.shape)
            ids = ids.masked_fill(mask == 0, self.model.config.pad_token_id or 0)
            out = self.model(input_ids=ids, attention_mask=mask, **self._no_cache()).last_hidden_state
            pieces.append(out.flatten(0, 1))
        return torch.cat(pieces)

    def _no_cache(self) -> dict[str, bool]:
        return {"use_cache": False} if getattr(self.model.config, "use_cache", None) is not None else {}


def _pool(hidden_TD: Tensor, layout: PackedLayout, pooling: str) -> Tensor:
    """Return one vector per text, [n, D], in the order in which the texts were given."""
    if pooling == "cls":
        return hidden_TD.index_select(0, layout.starts)
    if pooling == "lasttoken":
        return hidden_TD.index_select(0, layout.starts + layout.lengths - 1)
    sums = torch.segment_reduce(hidden_TD.float(), "sum", lengths=layout.segments, unsafe=True)
    return sums.index_select(0, layout.order) / layout.lengths[:, None]

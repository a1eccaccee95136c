"""One optimizer step: the gradients of a batch's loss, and what to do where memory cannot hold the batch at once."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor

from lorry.config import TrainConfig
from lorry.errors import UserError
from lorry.hardware import to_device
from lorry.model.encoder import Encoder, Hidden, Inputs
from lorry.model.graphs import MAX_PLACES, PassGraphs
from lorry.model.tokens import TokenizedTexts
from lorry.training.batches import Batch
from lorry.training.memory import is_out_of_memory
from lorry.training.objective import batch_loss

log = logging.getLogger("lorry")


@dataclass(frozen=True)
class Parts:
    """A batch's texts, ready for the encoder in parts of at most so many tokens."""

    max_tokens: int | None
    rows: tuple[np.ndarray, ...]
    """[n] places of each part's texts in the batch."""
    inputs: tuple[Inputs, ...]
    tokens: int
    """Of all texts."""


@dataclass
class Trainer:
    """What every optimizer step works with; the adapters of `encoder` are changed in place."""

    encoder: Encoder
    texts: TokenizedTexts
    config: TrainConfig
    accelerator: Accelerator
    max_tokens: int | None = None
    """Maximum tokens of a forward pass; None for no limit. Halved where memory runs out."""
    documents_TD: Tensor | None = None
    """Embeddings of the product texts, where queries alone are trained."""
    weights: dict[str, torch.nn.Parameter] = field(init=False)
    """The adapters by name, fp32."""
    optimizer: AcceleratedOptimizer = field(init=False)
    graphs: PassGraphs | None = field(init=False, default=None)
    """For batches that are encoded in one pass; None where passes are launched operation by operation."""

    def __post_init__(self) -> None:
        self.weights = self.encoder.trainable()
        on_gpu = self.encoder.device.type == "cuda"
        if self.config.cuda_graphs:
            self.graphs = PassGraphs.of(self.encoder)
        self.optimizer = self.accelerator.prepare(
            torch.optim.AdamW(
                self.weights.values(),
                lr=self.config.lr,
                weight_decay=self.config.weight_decay,
                foreach=not on_gpu,
                fused=on_gpu,  # one kernel, which also reads whether the scaler found the gradients finite
            )
        )

    def step(self, batch: Batch, step: int, lr: float, parts: Parts | None = None) -> Tensor:
        """Make optimizer step number `step` on a batch at this learning rate, and return the batch's loss.

        Args:
            batch: From `make_batch`.
            step: Counted over all epochs.
            lr: Learning rate.
            parts: What `parts` returned for the batch, where it was made ahead.

        Raises:
            UserError: There is not even memory for one text at a time.
        """
        self.optimizer.param_groups[0]["lr"] = lr
        loss = self._backward_within_memory(batch, step, parts)
        self.accelerator.clip_grad_norm_(self.weights.values(), self.config.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss

    def encoded(self, batch: Batch) -> np.ndarray:
        """Return the rows of a batch's texts that are encoded: queries alone, where products have their embeddings."""
        return batch.rows if self.documents_TD is None else batch.rows[: batch.queries]

    def parts(self, batch: Batch) -> Parts:
        """Return the parts in which a batch is encoded: one, where memory holds it."""
        rows = self.encoded(batch)
        lengths, limit = self.texts.lengths_of(rows), self.max_tokens
        too_large = limit is not None and lengths.sum() > limit
        parts = self.encoder.passes(lengths, limit) if too_large else [np.arange(len(rows))]
        spare_lines = self.graphs is not None and len(parts) == 1 and int(lengths.sum()) <= MAX_PLACES
        inputs = tuple(self.encoder.inputs(self.texts.take(rows[part]), spare_lines=spare_lines) for part in parts)
        return Parts(limit, tuple(parts), inputs, int(lengths.sum()))

    def backward(self, batch: Batch, step: int, parts: Parts | None = None) -> Tensor:
        """Add the gradients of the batch's loss to the adapters and return the loss.

        A batch of more than `max_tokens` tokens is encoded in parts: first without a graph, to get the loss and its
        gradient at every embedding; then part by part with one, each propagating its own share back. In-batch losses
        need this, since they compare texts of different parts.
        Gao et al. 2021 (GradCache), https://arxiv.org/abs/2101.06983
        """
        if parts is None or parts.max_tokens != self.max_tokens:
            parts = self.parts(batch)
        if len(parts.inputs) == 1:
            loss = self._loss(self._embed(parts, step, 0, self.graphs), batch)
            self.accelerator.backward(loss)
            return loss.detach()
        with torch.no_grad():
            pieces = torch.cat([self._embed(parts, step, at) for at in range(len(parts.inputs))])
        places = [to_device(rows, self.accelerator.device) for rows in parts.rows]
        embeddings_ND = torch.empty_like(pieces).index_copy_(0, torch.cat(places), pieces)
        embeddings_ND.requires_grad_()
        loss = self._loss(embeddings_ND, batch)
        self.accelerator.backward(loss)
        assert embeddings_ND.grad is not None
        for at, places_P in enumerate(places):
            piece = self._embed(parts, step, at)
            piece.backward(embeddings_ND.grad.index_select(0, places_P))  # not accelerate's: it is scaled already
        return loss.detach()

    def _backward_within_memory(self, batch: Batch, step: int, parts: Parts | None) -> Tensor:
        """Call `backward`; where memory runs out, again without graphs, then with parts of half the tokens."""
        lengths = self.texts.lengths_of(self.encoded(batch))
        total, longest = int(lengths.sum()), int(lengths.max())
        while True:
            try:
                return self.backward(batch, step, parts)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
            if self.graphs is not None and self.graphs.in_use:
                self.graphs.give_up("out of memory")
                self._forget_gradients()
                continue
            tokens = total if self.max_tokens is None else min(self.max_tokens, total)
            if tokens <= longest:
                raise UserError(
                    f"there is not enough memory for one text of {longest} tokens",
                    "Lower max_length, or take a smaller model.",
                )
            self._forget_gradients()
            self.max_tokens = max(tokens // 2, longest)
            log.warning(
                "out of memory with %d tokens in a forward pass: from now on at most %d", tokens, self.max_tokens
            )

    def _forget_gradients(self) -> None:
        """Free what a batch, or parts of it, have left when memory ran out."""
        for weight in self.weights.values():
            weight.grad = None
        if self.encoder.device.type == "cuda":
            torch.cuda.empty_cache()

    def _loss(self, embeddings_ND: Tensor, batch: Batch) -> Tensor:
        if self.documents_TD is None:
            return batch_loss(self.config, *batch.sides(embeddings_ND), batch.labels)
        documents = torch.from_numpy(batch.rows[batch.queries :] - self.texts.queries)
        text_ND = to_device(self.documents_TD[documents].numpy(), self.accelerator.device)
        return batch_loss(self.config, embeddings_ND, text_ND, batch.labels)

    def _embed(self, parts: Parts, step: int, part: int, hidden: Hidden | None = None) -> Tensor:
        if self.config.lora_dropout > 0:
            # The same dropout in both passes over a part, and in a run that was stopped and continued.
            torch.manual_seed(int(np.random.SeedSequence((self.config.seed, step, part)).generate_state(1)[0]))
        return self.encoder.embed_inputs(parts.inputs[part], dropout=True, hidden=hidden)

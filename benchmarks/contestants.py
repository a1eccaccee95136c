"""The contestants of `benchmarks/throughput.py` and `gpu.py`, each in a process of its own.

    python benchmarks/contestants.py TASK CONTESTANT FILE BATCH_SIZE PRECISION DEVICE

FILE is a parquet file of `query, text, gain, query_tokens, text_tokens`. The process prints a line of JSON when it is
ready. Then it reads numbers of seconds; for each it works at least that long (at least one step, or one pass over all
texts) and prints what it did. All train the same adapters (rank 8, alpha 32, on query, key and value) on the same pairs
with CoSENT.

- lorry: the project's own training step, encoder and tokeniser.
- lorry_graphs: the same with cuda_graphs.
- st: sentence-transformers with PEFT, used as its documentation shows.
- post: the training loop of the blog post that Lorry began from, reimplemented: both sides padded to 240 tokens.
- st_flash: the same with the attention of flash-attn, where that is installed.
- peak: only matrix products, of sizes that occur in such a model.
- profile: what the kernels of Lorry's training step take, and how long the device is idle.
"""

from __future__ import annotations

import json
import logging
import resource
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

LORA: dict[str, Any] = {"r": 8, "lora_alpha": 32, "target_modules": ["query", "key", "value"]}
POST_LENGTH = 240  # tokens to which the post pads both sides
ENDLESS = 100_000  # epochs: throughput.py ends the process
PROFILED_STEPS = 8


@dataclass(frozen=True)
class Job:
    """The work of a contestant."""

    file: Path
    batch_size: int
    precision: str
    device: str
    """cpu or cuda."""

    @property
    def dtype(self) -> torch.dtype:
        """Return the precision as torch's type."""
        return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[self.precision]

    def wait(self) -> None:
        """Wait until the device has done what it was given."""
        if self.device == "cuda":
            torch.cuda.synchronize()

    def columns(self) -> dict[str, list[Any]]:
        """Return the file's columns."""
        columns: dict[str, list[Any]] = pq.read_table(self.file).to_pydict()
        return columns


class Stopwatch:
    """Counts what is done; when the time is over it reports the counts and waits for the next turn."""

    def __init__(self, job: Job) -> None:
        """Remember whose device to wait for."""
        self.job = job

    def wait(self) -> None:
        """Wait for a number of seconds to work; end the process if there are no more."""
        line = sys.stdin.readline()
        if not line:
            sys.exit()
        self.steps = self.pairs = self.tokens = 0
        self.flop, self.wanted, self.began = 0.0, float(line), time.perf_counter()

    def step(self, pairs: int, tokens: float, flop_per_token: float) -> None:
        """Count a step, or a pass over all texts.

        Args:
            pairs: Its pairs or texts.
            tokens: Their tokens, without padding.
            flop_per_token: Of the model's matrix products.
        """
        self.steps, self.pairs, self.tokens = self.steps + 1, self.pairs + pairs, self.tokens + round(tokens)
        self.flop += tokens * flop_per_token
        if time.perf_counter() - self.began >= self.wanted:
            self.job.wait()
            took = time.perf_counter() - self.began
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            if self.job.device == "cuda":
                memory = torch.cuda.max_memory_allocated()
            names = ("steps", "pairs", "tokens", "flop")
            tell({**{name: getattr(self, name) for name in names}, "seconds": took, "peak_memory_bytes": memory})
            self.wait()


def main() -> None:
    """Run a contestant."""
    task, contestant, file, batch_size, precision, device = sys.argv[1:]
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    job = Job(Path(file), int(batch_size), precision, device)
    if device == "cpu":
        _limit_memory()
        torch.cuda.is_available = lambda: False  # whatever there is: the contest is one of CPUs
    try:
        CONTESTANTS[f"{task} {contestant}"](job, Stopwatch(job))
    except (RuntimeError, MemoryError) as error:
        if "alloc" not in str(error) and not isinstance(error, MemoryError):
            raise
        tell({"error": "out of memory"})


def tell(answer: dict[str, Any]) -> None:
    """Print a line for `throughput.py`."""
    print(json.dumps(answer), flush=True)


def _limit_memory() -> None:
    """Raise an error when memory runs out, before the kernel kills some process."""
    total = int(Path("/proc/meminfo").read_text("utf-8").split()[1]) * 1024
    resource.setrlimit(resource.RLIMIT_DATA, (int(total * 0.9), int(total * 0.9)))


def flop_per_token(model: torch.nn.Module, *, training: bool) -> float:
    """Return the floating-point operations of the model's matrix products per token.

    Two per weight in the forward pass, and two more for the gradient of the input: frozen weights have no gradient.
    Adapters and attention, a few per cent, are not counted.
    """
    linear = [
        module.weight.numel()
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and "lora_" not in name and "pooler" not in name
    ]
    return (4.0 if training else 2.0) * sum(linear)


def _base() -> Any:
    from lorry.model.pretrained import find_pretrained

    return find_pretrained("bundled")


def _lorry(job: Job) -> Any:
    """Return the pairs and their tokens as Lorry reads them, in a process that is set up as its commands are."""
    from lorry.config import PairOptions
    from lorry.data.pairs import read_channel
    from lorry.hardware import keep_freed_memory
    from lorry.model.tokens import tokenize

    keep_freed_memory()
    pairs = read_channel(job.file, PairOptions(label_column="gain", positive_threshold=0.5))["all"]
    return pairs, tokenize(pairs, _base())


def lorry_train(job: Job, stopwatch: Stopwatch) -> None:
    """Train with Lorry's own steps."""
    cost, steps = _lorry_steps(job)
    tell({"ready": True})
    stopwatch.wait()
    for pairs, tokens in steps:
        stopwatch.step(pairs, tokens, cost)


def lorry_graphs_train(job: Job, stopwatch: Stopwatch) -> None:
    """Train with Lorry's own steps as CUDA graphs."""
    cost, steps = _lorry_steps(job, cuda_graphs=True)
    tell({"ready": True})
    stopwatch.wait()
    for pairs, tokens in steps:
        stopwatch.step(pairs, tokens, cost)


def _lorry_steps(job: Job, *, cuda_graphs: bool = False) -> tuple[float, Iterator[tuple[int, int]]]:
    """Return the FLOP a token, and the pairs and tokens of step after step, each made when it is asked for."""
    from lorry.config import TrainConfig
    from lorry.data.sampler import BatchSampler
    from lorry.hardware import make_accelerator
    from lorry.model.encoder import Encoder
    from lorry.training.ahead import Ahead
    from lorry.training.batches import make_batch
    from lorry.training.update import Trainer

    config = TrainConfig(loss="cosent", batch_size=job.batch_size, cuda_graphs=cuda_graphs)
    pairs, texts = _lorry(job)
    accelerator, precision = make_accelerator(job.precision)
    encoder = Encoder(_base(), precision, accelerator.device)
    encoder.add_lora(
        rank=LORA["r"], alpha=LORA["lora_alpha"], dropout=0.0, targets=",".join(LORA["target_modules"]), seed=0
    )
    trainer = Trainer(encoder, texts, config, accelerator)
    sampler = BatchSampler(pairs.query, job.batch_size, ENDLESS, seed=0)

    def make(step: int) -> Any:
        batch = make_batch(texts, pairs, sampler.batch(step), encoder.device)
        return batch, trainer.parts(batch)

    def steps() -> Iterator[tuple[int, int]]:
        with Ahead(make) as batches:
            for step in range(sampler.steps):
                batch, parts = batches.take(step, more=True)
                trainer.step(batch, step, config.lr, parts)
                yield batch.pairs, parts.tokens

    return flop_per_token(encoder.model, training=True), steps()


def profile(job: Job, stopwatch: Stopwatch) -> None:
    """Profile some of Lorry's training steps: the ten kernels that take most, and how long the device is idle."""
    from torch.profiler import ProfilerActivity

    _, steps = _lorry_steps(job)
    tell({"ready": True})
    stopwatch.wait()
    for _ in range(PROFILED_STEPS):
        next(steps)
    job.wait()
    on_gpu = job.device == "cuda"
    began = time.perf_counter()
    for _ in range(PROFILED_STEPS):
        next(steps)
    job.wait()
    seconds = time.perf_counter() - began  # without the profiler, which takes time itself
    with torch.profiler.profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as found:
        for _ in range(PROFILED_STEPS):
            next(steps)
        job.wait()
    kernels = [
        (item.key, (item.self_device_time_total if on_gpu else item.self_cpu_time_total) / 1e6)
        for item in found.key_averages()
    ]
    largest = sorted(kernels, key=lambda kernel: -kernel[1])[:10]
    tell({
        "steps": PROFILED_STEPS,
        "seconds": seconds,
        "busy_seconds": sum(seconds for _, seconds in kernels),
        "kernels": [[_short(name), seconds] for name, seconds in largest],
    })  # fmt: skip
    stopwatch.wait()


def _short(kernel: str) -> str:
    """Return the name of a kernel without its middle: templates differ at their ends."""
    return kernel if len(kernel) <= 100 else f"{kernel[:40]} … {kernel[-57:]}"


def _sentence_transformer(job: Job, **options: Any) -> Any:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(_base().folder), device=job.device, local_files_only=True, **options)


def st_flash_train(job: Job, stopwatch: Stopwatch) -> None:
    """Train with sentence-transformers' trainer and flash-attn."""
    import flash_attn  # noqa: F401

    st_train(job, stopwatch, attn_implementation="flash_attention_2", dtype=job.dtype)


def st_train(job: Job, stopwatch: Stopwatch, **model_options: Any) -> None:
    """Train with sentence-transformers' trainer."""
    from datasets import Dataset
    from peft import LoraConfig, TaskType
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.losses import CoSENTLoss
    from transformers import TrainerCallback

    model = _sentence_transformer(job, model_kwargs={"dtype": torch.float32} | model_options)
    model.add_adapter(LoraConfig(task_type=TaskType.FEATURE_EXTRACTION, **LORA))
    rows = Dataset.from_parquet(str(job.file))
    pairs = min(job.batch_size, len(rows))
    tokens = pairs * (np.mean(rows["query_tokens"]) + np.mean(rows["text_tokens"]))  # batches are drawn at random
    cost = flop_per_token(model, training=True)

    class Counting(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            stopwatch.step(pairs, tokens, cost)

    arguments = SentenceTransformerTrainingArguments(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=job.batch_size,
        num_train_epochs=ENDLESS,
        learning_rate=1e-3,
        bf16=job.precision == "bf16",
        fp16=job.precision == "fp16",
        use_cpu=job.device == "cpu",
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_drop_last=pairs == job.batch_size,
    )
    trainer = SentenceTransformerTrainer(
        model=model,
        args=arguments,
        train_dataset=rows.select_columns(["query", "text", "gain"]).rename_column("gain", "score"),
        loss=CoSENTLoss(model),
        callbacks=[Counting()],
    )
    tell({"ready": True})
    stopwatch.wait()
    trainer.train()


def post_train(job: Job, stopwatch: Stopwatch) -> None:
    """Train as the blog post does: a plain loop over padded pairs, PEFT's own layers, one pass for each side."""
    from peft import LoraConfig, TaskType, get_peft_model
    from transformers import AutoModel, AutoTokenizer

    from lorry.training.losses import cosent_loss

    folder, columns = _base().folder, job.columns()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = get_peft_model(
        AutoModel.from_pretrained(folder), LoraConfig(task_type=TaskType.FEATURE_EXTRACTION, **LORA)
    ).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)
    cost = flop_per_token(model, training=True)
    rows = np.arange(len(columns["gain"]))
    tokens = np.array(columns["query_tokens"]) + np.array(columns["text_tokens"])

    def embed(texts: list[str]) -> torch.Tensor:
        options = {"padding": "max_length", "truncation": True, "max_length": POST_LENGTH, "return_tensors": "pt"}
        batch = tokenizer(texts, **options)
        hidden = model(**batch).last_hidden_state
        mask = batch["attention_mask"][..., None]
        return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1))

    tell({"ready": True})
    stopwatch.wait()
    for epoch in range(ENDLESS):
        np.random.default_rng(epoch).shuffle(rows)
        for start in range(0, len(rows), job.batch_size):
            some = rows[start : start + job.batch_size]
            with torch.autocast("cpu", job.dtype, enabled=job.precision == "bf16"):
                query, text = (embed([columns[name][row] for row in some]) for name in ("query", "text"))
            gain = torch.tensor([columns["gain"][row] for row in some])
            loss = cosent_loss((query.float() * text.float()).sum(1), gain, 20.0)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            stopwatch.step(len(some), int(tokens[some].sum()), cost)


def _unique(job: Job) -> tuple[list[str], int]:
    """Return the unique texts, queries first, and the number of their tokens."""
    columns = job.columns()
    found = [dict(zip(columns[name], columns[f"{name}_tokens"], strict=True)) for name in ("query", "text")]
    return [text for side in found for text in side], sum(sum(side.values()) for side in found)


def lorry_encode(job: Job, stopwatch: Stopwatch) -> None:
    """Encode every unique text as `lorry evaluate` does."""
    from lorry.model.embedding import embed_all
    from lorry.model.encoder import Encoder

    _, texts = _lorry(job)
    encoder = Encoder(_base(), job.precision, torch.device(job.device))
    cost = flop_per_token(encoder.model, training=False)
    tell({"ready": True})
    stopwatch.wait()
    while True:
        embed_all(encoder, texts)
        stopwatch.step(len(texts), int(texts.lengths.sum()), cost)


def st_encode(job: Job, stopwatch: Stopwatch) -> None:
    """Encode every unique text with `SentenceTransformer.encode`."""
    model = _sentence_transformer(job, model_kwargs={"dtype": job.dtype})
    texts, tokens = _unique(job)
    cost = flop_per_token(model, training=False)
    tell({"ready": True})
    stopwatch.wait()
    while True:
        model.encode(texts, batch_size=job.batch_size, show_progress_bar=False, convert_to_tensor=True)
        stopwatch.step(len(texts), tokens, cost)


def lorry_tokenize(job: Job, stopwatch: Stopwatch) -> None:
    """Tokenise the pairs as a run of Lorry does when its texts are new: once, into files."""
    from lorry.model.tokens import tokenize

    pairs, texts = _lorry(job)
    tell({"ready": True})
    stopwatch.wait()
    while True:
        with tempfile.TemporaryDirectory() as folder:
            tokenize(pairs, _base(), Path(folder))
        stopwatch.step(len(pairs), int(texts.lengths.sum()), 0)


def st_tokenize(job: Job, stopwatch: Stopwatch) -> None:
    """Tokenise the pairs as sentence-transformers does in every epoch: a batch at a time, each side padded."""
    model, columns = _sentence_transformer(job), job.columns()
    tokens = sum(columns["query_tokens"]) + sum(columns["text_tokens"])
    tell({"ready": True})
    stopwatch.wait()
    while True:
        for start in range(0, len(columns["gain"]), job.batch_size):
            for side in ("query", "text"):
                model.tokenize(columns[side][start : start + job.batch_size])
        stopwatch.step(len(columns["gain"]), tokens, 0)


def peak(job: Job, stopwatch: Stopwatch) -> None:
    """Multiply matrices: large square ones, and those of a small encoder's layers; the fastest kind counts."""
    shapes = [(2048, 2048, 2048), (4096, 384, 1536), (4096, 1536, 384), (8192, 768, 3072)]
    shapes += [(8192, 8192, 8192)] if job.device == "cuda" else []
    pairs = [(_matrix(job, rows, inner), _matrix(job, inner, columns)) for rows, inner, columns in shapes]
    for left, right in pairs:
        left @ right
    job.wait()
    tell({"ready": True})
    stopwatch.wait()
    while True:
        best = 0.0
        for left, right in pairs:
            for _ in range(5):
                began = time.perf_counter()
                left @ right
                job.wait()
                best = max(best, 2 * left.numel() * right.shape[1] / (time.perf_counter() - began))
        stopwatch.step(1, 1, best)


def _matrix(job: Job, rows: int, columns: int) -> torch.Tensor:
    return torch.randn(rows, columns, dtype=job.dtype, device=job.device)


CONTESTANTS: dict[str, Callable[[Job, Stopwatch], None]] = {
    "train lorry": lorry_train,
    "train lorry_graphs": lorry_graphs_train,
    "train st": st_train,
    "train st_flash": st_flash_train,
    "train post": post_train,
    "encode lorry": lorry_encode,
    "encode st": st_encode,
    "tokenize lorry": lorry_tokenize,
    "tokenize st": st_tokenize,
    "peak torch": peak,
    "profile lorry": profile,
}

if __name__ == "__main__":
    main()

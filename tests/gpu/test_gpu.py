"""What only a GPU can prove: `make gpu` runs these on one. LORRY_GPU=pretended takes the pretended device."""

import contextlib
import json
import os
import subprocess
import sys
from unittest import mock

import numpy as np
import pytest
import torch
from padded_models import (
    adapted_pair,
    assert_equal_gradients,
    gradients,
    packed_of,
    padded_embeddings,
    some_texts,
)

from command import lorry, stopped_after
from lorry.model.encoder import Encoder
from lorry.model.graphs import PassGraphs
from pretended_cuda import cuda

PRETENDED = os.environ.get("LORRY_GPU") == "pretended"
GPU = torch.device("cuda", 0)
# To transformers and PEFT in fp32 on the CPU: largest difference of an embedding's number, least cosine of a gradient.
TOLERANCES = {"fp32": (1e-4, 1 - 1e-6), "bf16": (3e-2, 0.95), "fp16": (5e-3, 0.995)}

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def gpu(monkeypatch):
    """Run on the GPU, with kernels that repeat themselves as far as PyTorch has such: attention's backward is not one
    for lines of more than one block, and training itself does not ask for them, since they are slower."""
    if PRETENDED:
        with cuda((8, 0)):
            yield
        return
    if not torch.cuda.is_available():
        pytest.fail("PyTorch sees no GPU; LORRY_GPU=pretended runs these tests without one")
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("precision", TOLERANCES)
def test_packed_embeddings_and_gradients_are_those_of_padded_transformers_and_peft(tiny_model, kind, precision):
    encoder, model, mine, theirs = adapted_pair(tiny_model(kind), precision=precision, device=GPU)
    texts = some_texts(encoder)
    found = encoder.embed(packed_of(texts))
    expected = padded_embeddings(model, texts, encoder.base.pooling)
    close, least = TOLERANCES[precision]
    torch.testing.assert_close(found.detach().cpu(), expected.detach(), atol=close, rtol=0)
    here, there = gradients(found, mine, GPU), gradients(expected, theirs)
    if precision == "fp32":
        assert_equal_gradients(here, there, 1e-4)
    for name, gradient in there.items():
        cosine = torch.cosine_similarity(here[name].flatten(), gradient.flatten(), dim=0)
        assert cosine > least, name


def test_a_graph_gives_the_embeddings_and_gradients_of_its_operations(tiny_model, kind):
    encoder, _, weights, _ = adapted_pair(tiny_model(kind), precision="fp32", device=GPU)
    if not encoder.packs:
        return
    graphs, same_lengths = PassGraphs.of(encoder), [some_texts(encoder, seed=seed) for seed in range(4)]
    with replayed() as replays:
        for texts in same_lengths:
            inputs = encoder.inputs(packed_of(texts), spare_lines=True)
            expected = encoder.embed_inputs(inputs)
            there = gradients(expected, weights, GPU)
            found = encoder.embed_inputs(inputs, hidden=graphs)
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
            assert_equal_gradients(gradients(found, weights, GPU), there, 1e-4)
    assert len(replays) == 6, "forward and backward, from the second time on"


@contextlib.contextmanager
def replayed():
    """Give a list that grows with every replay of a graph."""
    replays, replay = [], torch.cuda.CUDAGraph.replay

    def watched(graph):
        replays.append(graph)
        replay(graph)

    with mock.patch.object(torch.cuda.CUDAGraph, "replay", watched):
        yield replays


@pytest.fixture
def options(tmp_path, tiny_model, shop_pairs):
    """Options of a short run."""
    return {
        "train": shop_pairs(tmp_path / "train"), "pretrained_model": tiny_model("bert"), "batch_size": 24, "epochs": 2,
        "lr": 0.01, "log_every": 1, "checkpoint_every": 4, "interpolation": 1,
    }  # fmt: skip


def train(options, place, **changes):
    """Run `lorry train`; return its folders of model and output."""
    model, output = place / "model", place / "output"
    memory = {"micro_batch_tokens": 2000} if PRETENDED else {}  # tensors there have no address to measure memory by
    ended = lorry("train", **options | memory | {"model_dir": model, "output_data_dir": output} | changes)
    assert ended.code == 0, ended.output
    return model, output, ended.output


def losses(output):
    """Return the training loss of every step."""
    lines = map(json.loads, (output / "training.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_stopped_and_continued_gives_the_same_bytes(options, tmp_path, precision):
    options |= {"precision": precision}
    whole, _, _ = train(options, tmp_path / "whole")
    checkpoints = {"checkpoint_dir": tmp_path / "checkpoints"}
    with stopped_after(7):
        train(options, tmp_path / "parts", **checkpoints)
    model, _, said = train(options, tmp_path / "parts", **checkpoints)
    assert "continuing after step 7" in said
    assert (model / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_out_of_memory_halves_the_passes_and_training_goes_on(options, tmp_path):
    embed, limit = Encoder.embed_inputs, 150

    def short_of_memory(self, inputs, **how):
        tokens = sum(int(layout.lengths.sum().item()) for _, layout in inputs.passes)
        if torch.is_grad_enabled() and tokens > limit:
            if PRETENDED:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB.")
            torch.empty(1 << 50, dtype=torch.uint8, device=GPU)  # the error that CUDA's allocator raises
        return embed(self, inputs, **how)

    with mock.patch.object(Encoder, "embed_inputs", short_of_memory):
        _, output, said = train(options, tmp_path, precision="fp32", micro_batch_tokens=2000)
    assert "out of memory with" in said
    _, whole, _ = train(options, tmp_path / "whole", precision="fp32")
    assert losses(output) == pytest.approx(losses(whole), rel=1e-3)


@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp32"])
def test_training_with_graphs_follows_the_loss_curve_of_training_without(options, tmp_path, precision):
    options |= {"precision": precision}
    _, expected, _ = train(options, tmp_path / "without")
    with replayed() as replays:
        _, output, said = train(options, tmp_path / "with", cuda_graphs="true")
    assert "without CUDA graphs" not in said
    found, wanted = losses(output), losses(expected)
    assert len(replays) > len(found), "of two a step, but for the first of each shape"
    if precision == "fp32":
        assert found == pytest.approx(wanted, rel=1e-3)
    second = len(found) // 2  # epoch
    assert np.mean(found[second:]) == pytest.approx(np.mean(wanted[second:]), rel=0.05)


@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp32"])
def test_training_follows_the_loss_curve_of_the_cpu(options, tmp_path, precision):
    """In fp16 with the gradient scaler, as on a T4; it leaves out the first steps, until its scale is low enough."""
    _, output, said = train(options, tmp_path, precision=precision)
    assert f"precision {precision}" in said
    with mock.patch.object(torch.cuda, "is_available", return_value=False):
        _, expected, _ = train(options, tmp_path / "cpu", precision="fp32")
    found, wanted = losses(output), losses(expected)
    if precision == "fp32":
        assert found == pytest.approx(wanted, rel=1e-3)
    second = len(found) // 2  # epoch
    assert np.mean(found[second:]) == pytest.approx(np.mean(wanted[second:]), rel=0.1)
    assert np.mean(found[second:]) < np.mean(found[:second])


@pytest.mark.skipif(PRETENDED, reason="NCCL needs a GPU")
def test_one_rank_of_torchruns_makes_the_run_of_a_process_alone(options, tmp_path):
    """The code of several GPUs, NCCL included, on one."""
    _, output, _ = train(options, tmp_path / "alone", precision="fp32")
    folder = tmp_path / "rank"
    given = options | {"precision": "fp32", "model_dir": folder / "model", "output_data_dir": folder / "output"}
    flags = [f"--{name}={value}" for name, value in given.items()]
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", "1", "-m", "lorry"]
    done = subprocess.run(
        [sys.executable, "-m", *launcher, "train", *flags], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert losses(folder / "output") == pytest.approx(losses(output), rel=1e-3)

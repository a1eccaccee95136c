"""Training with CUDA graphs on a pretended device: the numbers of a run without, and no graph where none may be."""

import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
import torch

import pretended_cuda
from command import lorry, stopped_after
from lorry.config import TrainConfig
from lorry.errors import UserError
from lorry.hardware import to_device
from lorry.model import graphs
from lorry.model.encoder import Encoder
from lorry.model.packing import PackedLayout
from lorry.training.loop import fit
from lorry.training.progress import TrainingLog
from lorry.training.setup import prepare
from lorry.training.update import Trainer
from pretended_cuda import DEVICE, Graph, cuda

T4, A10G = (7, 5), (8, 6)
PADDED = "deberta-v2"
REPLAYS = [3, 3, 1, 1, 1, 1]  # of the graphs for 4, 3 and 5 lines, forward and backward

pytestmark = pytest.mark.skipif(
    bool(torch.version.cuda),
    reason="PyTorch's build for CUDA asks for the driver: the pretended device needs that for CPUs",
)


@pytest.fixture
def config(tmp_path, tiny_model, shop_pairs):
    """Eight steps, of 3, 4, 5, 4, 3, 4, 4 and 5 lines."""
    folder = shop_pairs(tmp_path / "train", queries=16)
    with (folder / "pairs.csv").open("a") as file:
        file.write(f"red lamp,{'new ' * 70},E\n")
    return TrainConfig(
        train=str(folder), pretrained_model=str(tiny_model("bert")), batch_size=24, epochs=2, lr=0.01, log_every=1,
        micro_batch_tokens=2000, best_epoch=False,
    )  # fmt: skip


@pytest.fixture
def said(caplog):
    """Return a function that returns what was logged about graphs."""
    return lambda: [line for line in caplog.messages if "raphs" in line]


def trained(config, capability=A10G):
    """Train; return the losses by step, the weights, and how often each captured graph was replayed."""
    with cuda(capability):
        setup = prepare(config)
        trainer = Trainer(setup.encoder, setup.texts["train"], config, setup.accelerator)
        log = TrainingLog(setup.sampler.steps)
        fit(trainer, setup.splits["train"], setup.sampler, log, validate=lambda: (0, {}))
        weights = {name: weight.detach().cpu().clone() for name, weight in trainer.weights.items()}
        replays = [graph.replays for graph in pretended_cuda.graphs]
    return [line["loss"] for line in log.lines if "loss" in line], weights, replays


def assert_equal_training(config, capability=A10G):
    """Check that graphs change nothing but the rounding; return how often each was replayed, forward and backward."""
    losses, weights, none = trained(config, capability)
    found, there, replays = trained(replace(config, cuda_graphs=True), capability)
    assert not none
    assert found == pytest.approx(losses, rel=2e-3)
    for name, weight in weights.items():
        torch.testing.assert_close(there[name], weight, rtol=0.02, atol=2e-3, msg=name)
    return replays


@pytest.mark.slow
def test_every_architecture(config, tiny_model, kind, said):
    replays = assert_equal_training(replace(config, pretrained_model=str(tiny_model(kind)), precision="bf16"))
    if kind == PADDED:
        assert not replays
        assert said() == ["cuda_graphs has no effect: deberta-v2 models cannot be packed"]
        return
    assert replays[::2] == replays[1::2], "every forward pass had its backward pass"
    assert sum(replays[::2]) >= sum(REPLAYS[::2])
    assert not said()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bert", "mpnet"])
def test_with_the_gradient_scaler_of_a_t4(config, tiny_model, kind):
    config = replace(config, pretrained_model=str(tiny_model(kind)), precision="fp16")
    assert assert_equal_training(config, T4) == REPLAYS


def test_in_fp32_and_with_the_class_token(config, tiny_model):
    """What is pooled is a view of the output where nothing is added up or rounded."""
    config = replace(config, pretrained_model=str(tiny_model("bert", pooling="cls", normalize=False)), precision="fp32")
    assert assert_equal_training(config) == REPLAYS


@pytest.mark.slow
def test_batches_in_parts_are_encoded_without(config):
    """As are those of several passes; whole batches between them have their graphs all the same."""
    assert assert_equal_training(replace(config, micro_batch_tokens=230)) == REPLAYS[:4]
    with mock.patch.dict("lorry.model.encoder.PASS_TOKENS", cuda=230):
        assert assert_equal_training(config) == REPLAYS[:4]


@pytest.mark.slow
def test_so_many_graphs_and_no_larger_passes(config):
    with mock.patch.object(graphs, "MAX_GRAPHS", 1):
        assert assert_equal_training(config) == [3, 3]
    with mock.patch.object(graphs, "MAX_PLACES", 200):
        assert assert_equal_training(config) == [1, 1]


def test_what_cannot_be_captured_is_said_once_and_trained_without(config, said):
    bias = PackedLayout.bias

    def reading(self, *arguments):
        self.lengths.sum().item()
        return bias(self, *arguments)

    with mock.patch.object(PackedLayout, "bias", reading):
        assert assert_equal_training(config) == [0]
    assert said() == [
        "training goes on without CUDA graphs: one could not be captured: CUDA error: operation not permitted when "
        "stream is capturing"
    ]


def test_no_memory_for_a_graph(config, said):
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB.\nMore of it.")
    with mock.patch.object(torch.cuda, "make_graphed_callables", side_effect=error) as tried:
        assert not assert_equal_training(config)
    assert tried.call_count == 1
    assert [line.rpartition("captured: ")[2] for line in said()] == [str(error).splitlines()[0]]


def test_where_memory_runs_out_later_the_graphs_free_theirs(config, said):
    embed, alive, seen = Encoder.embed_inputs, weakref.WeakSet(), []

    class Watched(graphs._Pass):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            alive.add(self)

    def short_of_memory(*arguments, **options):
        seen.append(len(alive))
        if len(seen) == 5:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB.")
        return embed(*arguments, **options)

    losses, _, _ = trained(config)
    with mock.patch.object(Encoder, "embed_inputs", short_of_memory), mock.patch.object(graphs, "_Pass", Watched):
        found, _, replays = trained(replace(config, cuda_graphs=True))
    assert found == pytest.approx(losses, rel=2e-3)
    assert replays == [1, 1]
    assert seen == [0, 0, 0, 0, 1, 0, 0, 0, 0], "the fourth step captures one; the fifth has no memory, and then it has"
    assert said() == ["training goes on without CUDA graphs: out of memory"]


def test_no_thread_copies_to_the_device_while_a_graph_is_captured(config):
    """CUDA refuses pinned memory then, in whatever thread."""
    capture, copied = torch.cuda.make_graphed_callables, []

    def beside(*arguments, **options):
        copying = other.submit(to_device, np.ones(3), DEVICE)
        with pytest.raises(TimeoutError):
            copying.result(timeout=0.2)
        graphed = capture(*arguments, **options)
        assert not copying.done()
        copied.append(copying)
        return graphed

    with mock.patch.object(torch.cuda, "make_graphed_callables", beside), ThreadPoolExecutor(1) as other:
        _, _, replays = trained(replace(config, cuda_graphs=True))
    assert replays == REPLAYS
    assert [copy.result(timeout=60).shape for copy in copied] == [(3,)] * 3


@pytest.mark.slow
def test_a_run_stopped_and_continued(config, tmp_path):
    options = {
        name: getattr(config, name) for name in ("train", "pretrained_model", "batch_size", "epochs", "lr", "log_every")
    } | {
        "micro_batch_tokens": 2000,
        "cuda_graphs": "true",
        "checkpoint_dir": tmp_path / "checkpoints",
        "on_stop": "checkpoint",
    }
    folders = {"model_dir": tmp_path / "model", "output_data_dir": tmp_path / "output"}
    with cuda(A10G), stopped_after(3):
        assert "stopped at step 3" in lorry("train", **options | folders).output
    with cuda(A10G):
        ended = lorry("train", **options | folders)
        assert pretended_cuda.graphs
    assert ended.code == 0, ended.output
    assert "continuing after step 3" in ended.output
    assert "cosine to base + adapter 1.000000" in ended.output


def test_on_a_cpu_the_option_has_no_effect_and_says_so(config, tmp_path):
    options = {"train": config.train, "pretrained_model": config.pretrained_model, "batch_size": 24, "lr": 0.01}
    models = []
    for switch in ("false", "true"):
        place = tmp_path / switch
        ended = lorry(
            "train", **options, cuda_graphs=switch, model_dir=place / "model", output_data_dir=place / "output"
        )
        assert ended.code == 0, ended.output
        assert ended.output.count("cuda_graphs has no effect: there is no GPU") == (switch == "true")
        models.append((place / "model" / "model.safetensors").read_bytes())
    assert models[0] == models[1]


@pytest.mark.parametrize(
    ("options", "cause"),
    [
        ({"lora_dropout": 0.1}, "cuda_graphs needs lora_dropout 0"),
        ({"lora_rank": 0}, "cuda_graphs needs adapters, and lora_rank 0 trains all weights"),
    ],
)
def test_where_it_could_have_no_effect_it_is_refused(options, cause):
    with pytest.raises(UserError) as refused:
        TrainConfig(cuda_graphs=True, **options)
    assert str(refused.value) == f"{cause}. Leave out cuda_graphs."


class TestThePretendedGraph:
    """It does what a CUDA graph does, and refuses what CUDA refuses."""

    def test_a_replay_reads_and_writes_the_same_memory_every_time(self):
        with cuda():
            x = torch.ones(3, device="cuda")
            graph, pool = Graph(), {}
            with graph.captured(pool):
                y = x * 2 + torch.zeros(3, device="cuda")
            assert y.cpu().tolist() == [2, 2, 2]
            x.copy_(torch.tensor([1.0, 2.0, 3.0]))
            graph.replay()
            assert y.cpu().tolist() == [2, 4, 6]

    @pytest.mark.parametrize(
        "refused",
        [
            lambda x: x.sum().item(),
            lambda x: x.nonzero(),
            lambda x: x.cpu(),
            lambda x: torch.ones(3).to("cuda"),
            lambda x: torch.tensor(1.0).to("cuda"),
            lambda x: x[x > 0],
            lambda x: torch.ones(3).pin_memory(),
        ],
    )
    def test_what_waits_or_copies_is_refused_while_one_is_captured(self, refused):
        with cuda():
            x = torch.ones(3, device="cuda")
            refused(x)
            with pytest.raises(RuntimeError, match="not permitted when stream is capturing"), Graph().captured({}):
                refused(x)
            refused(x)

    def test_a_backward_pass_after_another_graph_of_the_pool_is_refused(self):
        with cuda():
            pool = {}
            first, other = (
                torch.cuda.make_graphed_callables(
                    torch.nn.Linear(3, 3).to("cuda"), (torch.ones(2, 3, device="cuda"),), pool=pool
                )
                for _ in range(2)
            )
            x = torch.ones(2, 3, device="cuda")
            out = first(x)
            out.sum().backward()
            out = first(x)
            other(x)
            with pytest.raises(AssertionError, match="overwritten"):
                out.sum().backward()

"""The whole job on a pretended CUDA device: train, stop, continue, merge, evaluate, with no mix-up of devices."""

import json
from dataclasses import replace
from unittest import mock

import pytest
import torch

import pretended_cuda
from command import lorry, stopped_after
from lorry.config import TrainConfig
from lorry.loss_sum import LOSSES, TEACHER_LOSSES
from lorry.model.encoder import Encoder
from lorry.training.loop import fit
from lorry.training.progress import TrainingLog
from lorry.training.setup import prepare
from lorry.training.update import Trainer
from pretended_cuda import CudaTensor, cuda

T4, A10G = (7, 5), (8, 6)

pytestmark = pytest.mark.skipif(
    bool(torch.version.cuda),
    reason="PyTorch's build for CUDA asks for the driver: the pretended device needs that for CPUs",
)


@pytest.fixture
def place(tmp_path, tiny_model, shop_pairs):
    """Options of a short run. Tensors of the pretended device have no address, by which memory would be measured."""
    return {
        "train": shop_pairs(tmp_path / "train"), "pretrained_model": tiny_model("bert"), "batch_size": 24, "epochs": 1,
        "lr": 0.01, "log_every": 4, "micro_batch_tokens": 300, "model_dir": tmp_path / "model",
        "output_data_dir": tmp_path / "output", "checkpoint_dir": tmp_path / "checkpoints",
    }  # fmt: skip


@pytest.mark.parametrize(("capability", "precision"), [(T4, "fp16"), (A10G, "bf16")])
def test_a_run_stopped_between_two_log_lines_is_continued_to_a_proved_model(place, capability, precision):
    with cuda(capability), stopped_after(6):
        stopped = lorry("train", **place)
    assert stopped.code == 0, stopped.output
    assert f"running on Pretended GPU (capability {capability[0]}.{capability[1]}" in stopped.output
    assert f"precision {precision}" in stopped.output
    assert "stopped at step 6" in stopped.output
    with cuda(capability):
        ended = lorry("train", **place)
    assert ended.code == 0, ended.output
    assert "continuing after step 6" in ended.output
    assert "cosine to base + adapter 1.000000" in ended.output
    metrics = json.loads((place["output_data_dir"] / "metrics.json").read_text())
    assert metrics["training"]["steps"] == 10
    assert metrics["splits"]["validation"]["tuned"]["ndcg@10"] > 0.5


@pytest.mark.slow
def test_one_text_at_a_time_when_memory_is_short(place):
    with cuda(T4):
        ended = lorry("train", **place | {"micro_batch_tokens": 20, "checkpoint_dir": ""})
    assert ended.code == 0, ended.output


def test_where_the_gpu_has_no_room_for_a_second_model_it_is_merged_on_the_cpu(place):
    devices = []

    class Watched(Encoder):
        def __init__(self, base, precision, device):
            devices.append((precision, device.type))
            super().__init__(base, precision, device)

    with (
        cuda(T4),
        mock.patch("lorry.model.merge.free_memory", return_value=1),
        mock.patch("lorry.model.merge.Encoder", Watched),
    ):
        ended = lorry("train", **place)
    assert ended.code == 0, ended.output
    assert devices == [("fp32", "cpu")] * 2


@pytest.mark.slow
def test_every_architecture(place, tiny_model, kind):
    options = place | {
        "pretrained_model": tiny_model(kind),
        "checkpoint_dir": "",
        "lora_dropout": 0.1,
        "batch_size": 80,
    }
    with cuda(A10G):
        ended = lorry("train", **options)
    assert ended.code == 0, ended.output


def test_plan_and_evaluation(place, tmp_path):
    folders = ("model_dir", "output_data_dir", "checkpoint_dir")
    with cuda(T4):
        planned = lorry("plan", **{name: value for name, value in place.items() if name not in folders})
        evaluated = lorry(
            "evaluate", data=place["train"], model=place["pretrained_model"], output=tmp_path / "metrics.json"
        )
    assert planned.code == 0, planned.output
    assert "GB of the GPU's 17.2 in the largest step, 0.0 GB to merge" in planned.output
    assert evaluated.code == 0, evaluated.output


def test_a_model_trained_on_a_gpu_is_the_one_trained_on_the_cpu(place, tmp_path):
    """In fp32 both compute the same up to the order of sums."""
    options = place | {"precision": "fp32", "checkpoint_dir": ""}
    with cuda(A10G):
        assert lorry("train", **options).code == 0
    there = json.loads((place["output_data_dir"] / "metrics.json").read_text())
    here = options | {"model_dir": tmp_path / "cpu", "output_data_dir": tmp_path / "cpu-output"}
    assert lorry("train", **here).code == 0
    here = json.loads((tmp_path / "cpu-output" / "metrics.json").read_text())
    for name, value in here["splits"]["validation"]["tuned"].items():
        assert there["splits"]["validation"]["tuned"][name] == pytest.approx(value, abs=0.02)


@pytest.mark.parametrize("capability", [T4, A10G], ids=["fp16", "bf16"])
@pytest.mark.parametrize("tokens", [2000, 60], ids=["whole", "in parts"])
@pytest.mark.parametrize("loss", [TrainConfig.loss, "+".join(name for name in LOSSES if name not in TEACHER_LOSSES)])
def test_a_step_waits_for_the_device_in_nothing(place, loss, tokens, capability):
    config = TrainConfig(loss=loss, train=str(place["train"]), pretrained_model=str(place["pretrained_model"]))
    make_step, seen = Trainer.step, []

    def watched(self, *arguments):
        pretended_cuda.waits.clear()
        loss = make_step(self, *arguments)
        seen.append(dict(pretended_cuda.waits))
        return loss

    with cuda(capability), mock.patch.object(Trainer, "step", watched):
        setup = prepare(replace(config, batch_size=24, micro_batch_tokens=tokens))
        trainer = Trainer(setup.encoder, setup.texts["train"], setup.config, setup.accelerator)
        pretended_cuda.pageable.clear()
        fit(trainer, setup.splits["train"], setup.sampler, TrainingLog(setup.sampler.steps), validate=lambda: (0, {}))
    assert seen == [{}] * setup.sampler.steps
    assert not any(pretended_cuda.pageable.values())


class TestThePretendedDevice:
    """It refuses what CUDA refuses, and nothing else."""

    @pytest.mark.parametrize(
        "mixed",
        [
            lambda there, here: there + here,
            lambda there, here: torch.stack([there, here]),
            lambda there, here: torch.cat([there, torch.ones(1)]),
            lambda there, here: here[there.long()],
            lambda there, here: there.index_put_((torch.tensor([0, 1]),), torch.ones(2)),
            lambda there, here: torch.where(there > 0, there, here),
        ],
    )
    def test_tensors_of_both_devices_are_refused(self, mixed):
        with cuda():
            there, here = torch.ones(3).to("cuda"), torch.ones(3)
            with pytest.raises(RuntimeError, match="same device"):
                mixed(there, here)

    def test_stacking_numbers_of_both_devices_is_refused(self):
        """Of no dimension each, as the losses of a continued run were."""
        with cuda(), pytest.raises(RuntimeError, match="same device"):
            torch.stack([torch.tensor(1.0, device="cuda"), torch.tensor(1.0)])

    def test_what_cuda_allows_is_allowed(self):
        with cuda():
            there = torch.ones(3, device="cuda")
            there.copy_(torch.tensor([1.0, 2.0, 3.0]))
            there += torch.tensor(1.0)
            assert isinstance(there[torch.tensor([0, 2])], CudaTensor)
            there[torch.tensor([1])] = 0.5
            assert there.cpu().tolist() == [2.0, 0.5, 4.0]
            with pytest.raises((TypeError, RuntimeError, NotImplementedError)):
                there.numpy()

"""Stopped runs continue exactly; checkpoints are whole or skipped; those of another run are refused."""

import contextlib
import errno
import hashlib
import itertools
import json
import shutil
import signal
from unittest import mock

import pytest
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from command import lorry, stopped_after
from lorry.evaluation import scoring
from lorry.training.update import Trainer

STEPS = 20  # 10 an epoch


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def steps_of(folder):
    return sorted(path.name for path in folder.iterdir())


def log_of(output):
    """What training.jsonl says, without what depends on the clock."""
    lines = [json.loads(line) for line in (output / "training.jsonl").read_text().splitlines()]
    clock = ("pairs_per_second", "expected_seconds")
    return [{name: value for name, value in line.items() if name not in clock} for line in lines]


class Runs:
    """Runs of one recipe: `run(…)` starts one in folders of its own, stopped after a step where that is wanted."""

    def __init__(self, folder, model, write_pairs):
        self.folder, self.write_pairs = folder, write_pairs
        self.recipe = {
            "train": write_pairs(folder / "train"), "pretrained_model": model, "batch_size": 24, "epochs": 2,
            "lr": 0.01, "log_every": 2, "checkpoint_every": 5, "precision": "fp32", "on_stop": "checkpoint",
        }  # fmt: skip

    def run(self, name, *, stop_at=0, **changes):
        folders = {
            "model_dir": self.model(name),
            "output_data_dir": self.output(name),
            "checkpoint_dir": self.kept(name),
        }
        with stopped_after(stop_at):
            return lorry("train", **self.recipe | folders | changes)

    def model(self, name):
        return self.folder / name / "model"

    def output(self, name):
        return self.folder / name / "output"

    def kept(self, name):
        return self.folder / name / "checkpoints"

    def weights(self, name):
        return sha256(self.model(name) / "model.safetensors")


@pytest.fixture
def runs(tmp_path, tiny_model, shop_pairs):
    return Runs(tmp_path, tiny_model("bert"), shop_pairs)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, tiny_model, shop_pairs):
    """A run that nothing stopped; do not write to it."""
    runs = Runs(tmp_path_factory.mktemp("whole"), tiny_model("bert"), shop_pairs)
    assert runs.run("whole").code == 0
    return runs


@pytest.fixture
def stopped(tmp_path, tmp_path_factory, tiny_model, shop_pairs):
    """A copy of the checkpoints of a run stopped after step 8, with checkpoints of steps 5 and 8."""
    runs = Runs(tmp_path, tiny_model("bert"), shop_pairs)
    made = tmp_path_factory.getbasetemp() / "stopped-at-8"
    if not made.exists():
        assert runs.run("stopped", stop_at=8).code == 0
        shutil.copytree(runs.kept("stopped"), made)
        shutil.rmtree(tmp_path / "stopped")
    shutil.copytree(made, runs.kept("stopped"))
    return runs


def assert_as_if_never_stopped(runs, name, whole):
    assert runs.weights(name) == whole.weights("whole")
    assert log_of(runs.output(name)) == log_of(whole.output("whole"))


@pytest.mark.parametrize("step", [7, 19])
def test_a_run_stopped_and_continued_ends_as_one_that_was_not(runs, whole, step):
    ended = runs.run("twice", stop_at=step)
    assert ended.code == 0
    assert f"stopped at step {step}, resume with the same checkpoint folder" in ended.output
    assert steps_of(runs.kept("twice"))[-1] == f"step-{step:08d}"
    again = runs.run("twice")
    assert again.code == 0
    assert f"continuing after step {step}" in again.output
    assert_as_if_never_stopped(runs, "twice", whole)


def test_a_run_may_be_stopped_again_and_again(runs, whole):
    for step in (3, 4, 11):
        assert f"stopped at step {step}," in runs.run("often", stop_at=step).output
    assert runs.run("often").code == 0
    assert_as_if_never_stopped(runs, "often", whole)


@pytest.mark.parametrize("step", [STEPS // 2, STEPS])
def test_a_run_stopped_as_an_epoch_ends_evaluates_that_epoch_when_continued(runs, whole, step):
    ended = runs.run("twice", stop_at=step)
    assert ended.code == 0
    assert f"stopped at step {step}, resume with the same checkpoint folder" in ended.output
    assert runs.run("twice").code == 0
    assert_as_if_never_stopped(runs, "twice", whole)


@pytest.mark.parametrize(("evaluation", "step"), [(4, 4), (10, 10), *((count, STEPS) for count in range(20, 27))])
def test_a_stop_during_an_evaluation_gives_it_up_and_keeps_what_was_trained(runs, whole, evaluation, step):
    """Nine of the sample and one of all an epoch, then the base model's, each share's, and the merged model's."""
    count = itertools.count(1)

    def embed_pairs(*arguments, **options):
        if next(count) == evaluation:
            signal.raise_signal(signal.SIGTERM)
        return embedded(*arguments, **options)

    embedded = scoring.embed_pairs
    with mock.patch("lorry.evaluation.scoring.embed_pairs", embed_pairs):
        ended = runs.run("twice", checkpoint_every=1000, on_stop="export")
    assert ended.code == 0
    assert f"stopped at step {step}, resume with the same checkpoint folder" in ended.output
    facts = json.loads((runs.model("twice") / "lorry.json").read_text())
    assert (facts["finished"], facts["stopped_at"], facts["interpolation"]) == (False, step, 1.0)
    assert runs.run("twice").code == 0
    assert_as_if_never_stopped(runs, "twice", whole)


def test_a_finished_run_started_again_ends_with_the_same_model(runs, whole):
    shutil.copytree(whole.kept("whole"), runs.kept("again"))
    ended = runs.run("again")
    assert f"continuing after step {STEPS}" in ended.output
    assert_as_if_never_stopped(runs, "again", whole)


RECIPES = {
    "fp16": {"precision": "fp16"},
    "bf16 parts dropout": {"precision": "bf16", "micro_batch_tokens": 100, "lora_dropout": 0.2},
    "mined negatives": {"hard_negatives": 6, "epochs": 2},
    "all weights": {"lora_rank": 0, "lr": 1e-3},
    "queries alone": {"train_side": "query"},
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_whatever_the_recipe_a_continued_run_is_exact(runs, recipe):
    changes = {"epochs": 1} | RECIPES[recipe]
    assert runs.run("whole", **changes).code == 0
    assert "stopped at step 4" in runs.run("twice", stop_at=4, **changes).output
    assert runs.run("twice", **changes).code == 0
    assert runs.weights("twice") == runs.weights("whole")
    assert log_of(runs.output("twice")) == log_of(runs.output("whole"))


def cut(path):
    path.write_bytes(path.read_bytes()[:-10])


DAMAGE = {
    "no state": lambda newest: (newest / "state.json").unlink(),
    "state cut short": lambda newest: cut(newest / "state.json"),
    "empty state": lambda newest: (newest / "state.json").write_text(""),
    "state of nothing": lambda newest: (newest / "state.json").write_text("null"),
    "no adapters": lambda newest: (newest / "adapters.safetensors").unlink(),
    "adapters cut short": lambda newest: cut(newest / "adapters.safetensors"),
    "moments cut short": lambda newest: cut(newest / "optimizer.safetensors"),
    "log cut short": lambda newest: cut(newest / "training.jsonl"),
    "an empty folder": lambda newest: [path.unlink() for path in newest.iterdir()],
    "state of a list": lambda newest: (newest / "state.json").write_text("[]"),
    "state of bytes": lambda newest: (newest / "state.json").write_bytes(bytes(range(256))),
    "no identity": lambda newest: change(newest, "identity", None),
    "a step that is no number": lambda newest: change(newest, "step", "8"),
    "another step": lambda newest: change(newest, "step", 7),
    "no hashes": lambda newest: change(newest, "sha256", {}),
    "hashes of a list": lambda newest: change(newest, "sha256", []),
    "no counters": lambda newest: change(newest, "progress", {"losses": [], "scaler": {}}),
    "counters of words": lambda newest: change(newest, "progress", {"counters": "eight", "losses": [], "scaler": {}}),
    "no progress": lambda newest: change(newest, "progress", 3),
    "a format that is no number": lambda newest: change(newest, "format", "new"),
    "state nested too deeply": lambda newest: (newest / "state.json").write_text("[" * 200_000),
    "a counter of another step": lambda newest: count(newest, "step", 9),
    "a counter that is nothing": lambda newest: count(newest, "step", None),
    "a counter of half a step": lambda newest: count(newest, "step", 1.5),
    "another digit of the steps counted": lambda newest: flip(newest, b'\n   "step": '),
    "another digit of the seconds": lambda newest: flip(newest, b'"seconds": '),
    "another digit of the learning rate": lambda newest: flip(newest, b'"lr": '),
    "another digit of the checksum": lambda newest: flip(newest, b'"checksum": "'),
    "no weights of the best epoch": lambda newest: (newest / "kept.safetensors").unlink(),
    "weights of the best epoch cut short": lambda newest: cut(newest / "kept.safetensors"),
    "a best epoch of words": lambda newest: progress(newest, "best", ["8", 0.5]),
    "no best epoch": lambda newest: progress(newest, "best", []),
    "no checksum": lambda newest: flip(newest, b'"checksu'),
}


def change(folder, name, value):
    """Change an entry of state.json, with a checksum as if it had been written so."""
    state = json.loads((folder / "state.json").read_text())
    state = {entry: held for entry, held in state.items() if entry != "checksum"} | {name: value}
    checksum = hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()
    (folder / "state.json").write_text(json.dumps(state | {"checksum": checksum}))


def count(folder, name, value):
    """Change a counter as damage to a checkpoint of an earlier version would, which has no checksum of its state."""
    (folder / "kept.safetensors").unlink()
    state = json.loads((folder / "state.json").read_text())
    del state["checksum"], state["progress"]["best"], state["sha256"]["kept.safetensors"]
    state["progress"]["counters"][name] = value
    (folder / "state.json").write_text(json.dumps(state | {"format": 2}))


def progress(folder, name, value):
    """Change an entry of the progress in state.json, with a checksum as if it had been written so."""
    held = json.loads((folder / "state.json").read_text())["progress"]
    change(folder, "progress", held | {name: value})


def flip(folder, before):
    """Change one bit of the character that stands after `before`."""
    path = folder / "state.json"
    held = bytearray(path.read_bytes())
    held[held.index(before) + len(before)] ^= 1
    path.write_bytes(held)


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_half_written_newest_checkpoint_is_skipped_for_the_one_before(stopped, damage):
    assert steps_of(stopped.kept("stopped")) == ["step-00000005", "step-00000008"]
    DAMAGE[damage](stopped.kept("stopped") / "step-00000008")
    ended = stopped.run("stopped", stop_at=6)  # soon again: where it begins is what counts
    assert "step-00000008 is incomplete and is skipped" in ended.output
    assert "continuing after step 5" in ended.output


def test_after_a_half_written_checkpoint_the_model_is_still_the_same(stopped, whole):
    cut(stopped.kept("stopped") / "step-00000008" / "adapters.safetensors")
    assert stopped.run("stopped").code == 0
    assert_as_if_never_stopped(stopped, "stopped", whole)


def test_with_no_whole_checkpoint_training_begins_anew(stopped, whole):
    for folder in stopped.kept("stopped").iterdir():
        cut(folder / "optimizer.safetensors")
    ended = stopped.run("stopped")
    assert ended.code == 0
    assert "continuing" not in ended.output
    assert_as_if_never_stopped(stopped, "stopped", whole)


def test_two_checkpoints_are_kept_and_what_was_being_written_does_no_harm(stopped):
    kept = stopped.kept("stopped")
    for step in (9, 15):
        beside = kept / f".step-{step:08d}.writing"
        beside.mkdir()
        (beside / "adapters.safetensors").write_bytes(b"half")
    (kept / "notes.txt").write_text("mine")
    assert stopped.run("stopped").code == 0
    assert [name for name in steps_of(kept) if name.startswith("step-")] == ["step-00000015", "step-00000020"]
    assert (kept / "notes.txt").read_text() == "mine"


def test_folders_of_the_users_are_left_alone(stopped):
    kept = stopped.kept("stopped")
    for name in ("step-00-notes", "step-1", "step-00000003-copy", "best", "step-00000001"):
        (kept / name).mkdir()
        (kept / name / "mine").write_text("mine")
    assert stopped.run("stopped").code == 0
    assert {"step-00-notes", "step-1", "step-00000003-copy", "best", "step-00000001"} <= set(steps_of(kept))


def test_damaged_newer_checkpoints_do_not_push_out_good_ones(stopped):
    """Two damaged ones after the good one of step 5: it stays until two newer ones are complete."""
    kept = stopped.kept("stopped")
    shutil.copytree(kept / "step-00000008", kept / "step-00000011")
    for name in ("step-00000008", "step-00000011"):
        cut(kept / name / "adapters.safetensors")
    ended = stopped.run("stopped", stop_at=7, checkpoint_every=1000)
    assert "continuing after step 5" in ended.output
    assert {"step-00000005", "step-00000007"} <= set(steps_of(kept))
    assert "continuing after step 7" in stopped.run("stopped", stop_at=8, checkpoint_every=1000).output


def test_a_checkpoint_of_an_earlier_version_is_refused(stopped):
    count(stopped.kept("stopped") / "step-00000008", "step", 8)
    refused(stopped, {}, "was written by an older version of Lorry. Continue with that version, or give another")


def test_a_checkpoint_of_a_newer_version_is_refused(stopped):
    change(stopped.kept("stopped") / "step-00000008", "format", 99)
    refused(stopped, {}, "was written by a newer version of Lorry")


def test_other_versions_of_the_libraries_are_said(stopped):
    newest = stopped.kept("stopped") / "step-00000008"
    change(newest, "versions", {"torch": "2.0.0", "lorry": "0.1.0"})
    assert "the checkpoint was written with torch 2.0.0" in stopped.run("stopped", stop_at=9).output


def test_a_run_continues_in_the_precision_that_it_began_in(runs):
    """A job that comes back on another kind of GPU: `auto` would choose another precision there."""
    with auto_chooses("bf16"):
        assert runs.run("whole", precision="auto", epochs=1).code == 0
        assert "stopped at step 4" in runs.run("twice", stop_at=4, precision="auto", epochs=1).output
    with auto_chooses("fp32"):
        again = runs.run("twice", precision="auto", epochs=1)
    assert again.code == 0
    assert "continuing in bf16, as the run began" in again.output
    assert "precision bf16" in again.output
    assert runs.weights("twice") == runs.weights("whole")


@contextlib.contextmanager
def auto_chooses(precision):
    def choose(asked, device):
        return precision if asked == "auto" else asked

    with (
        mock.patch("lorry.hardware.choose_precision", choose),
        mock.patch("lorry.training.setup.choose_precision", choose),
    ):
        yield


def test_another_precision_is_refused_by_name(stopped):
    refused(stopped, {"precision": "bf16"}, "precision (fp32, now bf16)")


def test_what_has_diverged_is_not_written_over_a_good_checkpoint(stopped):
    """Between two log lines: the loss is looked at before a checkpoint too."""

    def diverge(self, batch, number, lr, parts):
        loss = make_step(self, batch, number, lr, parts)
        return loss * float("nan") if number == 8 else loss

    make_step = Trainer.step
    with mock.patch.object(Trainer, "step", diverge):
        ended = stopped.run("stopped", log_every=100, checkpoint_every=1)
    assert ended.code == 1
    assert "training has diverged by step 9" in ended.lines[-1]
    assert "the last good checkpoint is step-00000008" in ended.lines[-1]
    assert "Lower lr" in ended.lines[-1]
    assert steps_of(stopped.kept("stopped")) == ["step-00000005", "step-00000008"]


class TestFullDisk:
    """No room for a checkpoint from some step on."""

    @pytest.fixture(autouse=True)
    def _full(self, monkeypatch):
        def save(tensors, path):
            if int(path.parent.name.split("-")[1].split(".")[0]) > 6:
                raise SafetensorError("I/O error: No space left on device (os error 28)")
            save_file(tensors, path)

        monkeypatch.setattr("lorry.training.checkpoint.save_file", save)

    def test_training_goes_on(self, runs, whole):
        ended = runs.run("full")
        assert ended.code == 0
        assert ended.output.count("warning: no checkpoint at step") == 3
        assert "No space left on device" in ended.output
        assert runs.weights("full") == whole.weights("whole")

    def test_a_stop_leaves_the_model_and_says_that_it_cannot_be_continued(self, runs):
        ended = runs.run("full", stop_at=8, on_stop="export")
        assert ended.code == 1
        assert "step-00000008 cannot be written" in ended.lines[-1]
        assert (runs.model("full") / "model.safetensors").is_file()
        assert steps_of(runs.kept("full"))[-1] == "step-00000005"


def test_a_stop_with_no_room_for_the_model_leaves_the_adapter_and_the_log(runs, monkeypatch):
    def complete(folder):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("lorry.model_folder._complete", complete)
    ended = runs.run("full", stop_at=3, checkpoint_dir="", on_stop="export")
    assert ended.code == 1
    assert "stopped at step 3, give --checkpoint_dir" in ended.output
    adapter = runs.output("full") / "adapter"
    assert f"{runs.model('full')} cannot be written: No space left on device" in ended.lines[-1]
    assert f"(the trained adapter is in {adapter})" in ended.lines[-1]
    assert load_file(adapter / "adapter_model.safetensors")
    assert log_of(runs.output("full"))[-1]["step"] == 2
    assert not (runs.model("full") / "model.safetensors").exists()


OTHER = {
    "lr": ({"lr": 0.02}, "lr (0.01, now 0.02)"),
    "loss": ({"loss": "cosine"}, "loss (0.3*infonce+2*ranknet+2*cosent, now cosine)"),
    "seed": ({"seed": 7}, "seed (42, now 7)"),
    "epochs": ({"epochs": 3}, "epochs (2, now 3)"),
    "several": ({"lora_rank": 4, "batch_size": 12}, "batch_size (24, now 12), lora_rank (16, now 4)"),
}


@pytest.mark.parametrize("what", OTHER)
def test_a_checkpoint_of_other_hyperparameters_is_refused_by_name(stopped, what):
    changes, says = OTHER[what]
    refused(stopped, changes, says)


def test_a_checkpoint_of_other_data_is_refused(stopped, tmp_path):
    changes = {"train": stopped.write_pairs(tmp_path / "other", seed=1)}
    refused(stopped, changes, "training data, validation data differ")


def test_the_best_epoch_is_not_chosen_on_two_sets_of_pairs(runs, tmp_path):
    """Scores of the epochs before the stop are compared with those after it."""
    recipe = runs.recipe | {"validation": runs.write_pairs(tmp_path / "validation", seed=1)}
    runs.recipe = recipe
    assert runs.run("stopped", stop_at=STEPS // 2 + 1, on_stop="checkpoint").code == 0
    other = runs.write_pairs(tmp_path / "other", seed=2)
    refused(runs, {"validation": other}, "validation data differ")
    runs.recipe = recipe | {"best_epoch": "false"}
    assert runs.run("last", stop_at=STEPS // 2 + 1).code == 0
    assert "continuing after" in runs.run("last", validation=other).output


def test_a_checkpoint_of_another_base_model_under_the_same_name_is_refused(stopped, tmp_path, tiny_model):
    base = shutil.copytree(tiny_model("bert"), tmp_path / "base")
    shutil.rmtree(stopped.kept("stopped"))
    stopped.recipe["pretrained_model"] = base
    assert "stopped at step 2" in stopped.run("stopped", stop_at=2).output
    weights = load_file(base / "model.safetensors")
    name = next(name for name in weights if name.endswith("word_embeddings.weight"))
    save_file(weights | {name: weights[name] + 1}, base / "model.safetensors", {"format": "pt"})
    refused(stopped, {}, "base model differ")


def test_the_same_base_model_elsewhere_is_no_other_one(stopped, whole, tiny_model, tmp_path):
    copied = shutil.copytree(tiny_model("bert"), tmp_path / "copied")
    ended = stopped.run("stopped", pretrained_model=f"{copied}/")
    assert "continuing after step 8" in ended.output
    assert_as_if_never_stopped(stopped, "stopped", whole)


def refused(runs, changes, says):
    before = {path: path.read_bytes() for path in runs.kept("stopped").rglob("*") if path.is_file()}
    ended = runs.run("stopped", **changes)
    assert ended.code == 1
    assert says in ended.lines[-1], ended.lines[-1]
    assert "--checkpoint_dir" in ended.lines[-1]
    assert not runs.model("stopped").exists()
    assert {path: path.read_bytes() for path in runs.kept("stopped").rglob("*") if path.is_file()} == before


def test_what_does_not_change_training_may_differ(stopped, whole, tmp_path):
    moved = shutil.copytree(stopped.recipe["train"], tmp_path / "moved")
    (tmp_path / "elsewhere").mkdir()
    free = {"train": moved, "eval_batch_size": 7, "log_every": 9, "checkpoint_every": 4, "on_stop": "export"}
    ended = stopped.run("stopped", **free, model_dir=tmp_path / "elsewhere" / "model")
    assert ended.code == 0
    assert "continuing after step 8" in ended.output
    assert sha256(tmp_path / "elsewhere" / "model" / "model.safetensors") == whole.weights("whole")


def test_on_stop_checkpoint_leaves_no_model(runs):
    assert runs.run("stopped", stop_at=3, on_stop="checkpoint").code == 0
    assert not runs.model("stopped").exists()
    assert not list(runs.folder.rglob(".lorry-*"))
    assert log_of(runs.output("stopped"))[-1]["step"] == 2


def test_on_stop_export_leaves_a_model_marked_as_unfinished_that_the_finished_one_replaces(runs, whole):
    ended = runs.run("stopped", stop_at=3, on_stop="export")
    assert ended.code == 0
    assert f"the model as trained so far: {runs.model('stopped')}" in ended.output
    facts = json.loads((runs.model("stopped") / "lorry.json").read_text())
    assert (facts["finished"], facts["stopped_at"], facts["steps"]) == (False, 3, 3)
    assert "3" in (runs.model("stopped") / "README.md").read_text()
    assert runs.weights("stopped") != whole.weights("whole")
    assert runs.run("stopped", on_stop="export").code == 0
    facts = json.loads((runs.model("stopped") / "lorry.json").read_text())
    assert (facts["finished"], facts["stopped_at"], facts["steps"]) == (True, None, STEPS)
    assert_as_if_never_stopped(runs, "stopped", whole)


def test_a_stop_without_a_checkpoint_folder_says_how_to_resume_next_time(runs):
    ended = runs.run("stopped", stop_at=2, checkpoint_dir="", on_stop="export")
    assert ended.code == 0
    assert ended.lines[-1] == "stopped at step 2, give --checkpoint_dir to resume next time"
    assert (runs.model("stopped") / "model.safetensors").is_file()


def test_a_stop_before_training_ends_well_and_leaves_nothing(runs):
    def tokenize(*arguments):
        signal.raise_signal(signal.SIGTERM)
        pytest.fail("a stop is heard at once while texts are tokenised")

    with mock.patch("lorry.training.setup.tokenize", tokenize):
        ended = runs.run("early", on_stop="export")
    assert ended.code == 0
    assert "SIGTERM received: stopping\n" in ended.output
    assert "stopped at step 0" in ended.output
    assert not runs.model("early").exists()

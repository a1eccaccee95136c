"""A model is replaced completely or not at all, wherever a run is killed; what Lorry did not write is never deleted."""

import contextlib
import dataclasses
import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from command import lorry
from lorry import model_folder, outputs
from lorry.config import TrainConfig
from lorry.errors import UserError
from lorry.model_folder import check_model_dir, keep_aside, recover, staging
from lorry.outputs import (
    OutputError,
    check_apart,
    check_results,
    check_space,
    check_writable,
    claimed,
    write_json,
)

NEW = {"lorry.json", "config.json", "model.safetensors", "1_Pooling/config.json", "adapter/adapter_config.json"}
OLD = {"lorry.json", "config.json", "model.safetensors", "2_Normalize/config.json", "vocab.txt"}


def files(folder):
    """Return the files below a folder."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def write(folder, names, content):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps({"made": content}) if name == "lorry.json" else content)


def build(model_dir, names=NEW, content="new"):
    model_dir.mkdir(parents=True, exist_ok=True)
    with staging(model_dir) as folder:
        write(folder, names, content)


def fail_to_build(model_dir):
    with staging(model_dir) as folder:
        write(folder, {"lorry.json"}, "half")
        raise ZeroDivisionError


def is_model(model_dir, names, content):
    """Tell whether a folder holds exactly this model, every file of it."""
    if files(model_dir) != names:
        return False
    return all(
        json.loads((model_dir / name).read_text())["made"] == content
        if name == "lorry.json"
        else (model_dir / name).read_text() == content
        for name in names
    )


@pytest.fixture(params=["folder", "symbolic link", "current folder"])
def model_dir(request, tmp_path, monkeypatch):
    """A model folder as users name it."""
    folder = tmp_path / "real" / "model"
    folder.mkdir(parents=True)
    if request.param == "symbolic link":
        (tmp_path / "link").symlink_to(folder)
        return tmp_path / "link"
    if request.param == "current folder":
        monkeypatch.chdir(folder)
        return Path()
    return folder


def test_a_model_is_put_in_place(model_dir):
    build(model_dir)
    assert is_model(model_dir, NEW, "new")
    assert sorted(json.loads((model_dir / "lorry.json").read_text())["files"]) == sorted(NEW)


def test_an_earlier_model_is_replaced_completely(model_dir):
    build(model_dir, OLD, "old")
    build(model_dir)
    assert is_model(model_dir, NEW, "new")
    assert not list(model_dir.glob(".lorry-*"))


def test_a_model_of_an_earlier_version_is_replaced_too(model_dir):
    """Such a one does not list its files."""
    write(model_dir, OLD, "old")
    build(model_dir)
    assert is_model(model_dir, NEW, "new")


def test_what_others_wrote_is_kept(model_dir):
    build(model_dir, OLD, "old")
    write(model_dir, {"notes.txt", "adapter/mine", "2_Normalize/mine", "1_Pooling/config.json"}, "mine")
    build(model_dir)
    assert files(model_dir) == {*NEW, "notes.txt", "adapter/mine", "2_Normalize/mine", "1_Pooling/config.json.kept"}
    for name in ("notes.txt", "adapter/mine", "2_Normalize/mine", "1_Pooling/config.json.kept"):
        assert (model_dir / name).read_text() == "mine"


def test_a_folder_of_others_makes_room_for_a_file_of_the_model(model_dir):
    build(model_dir, OLD, "old")
    write(model_dir, {"merges.txt/mine", "merges.txt/also/mine"}, "mine")
    build(model_dir, NEW | {"merges.txt"})
    assert files(model_dir) == NEW | {"merges.txt", "merges.txt.kept/mine", "merges.txt.kept/also/mine"}


def test_what_was_kept_before_is_kept_too(model_dir):
    build(model_dir, OLD, "old")
    write(model_dir, {"merges.txt"}, "mine")
    write(model_dir, {"merges.txt.kept"}, "kept before")
    build(model_dir, NEW | {"merges.txt"})
    assert files(model_dir) == NEW | {"merges.txt", "merges.txt.kept", "merges.txt.kept2"}
    assert (model_dir / "merges.txt.kept").read_text() == "kept before"
    assert (model_dir / "merges.txt.kept2").read_text() == "mine"


@pytest.mark.parametrize("earlier", [True, False], ids=["earlier model", "no model"])
def test_a_failure_leaves_everything_as_it_was(model_dir, earlier):
    if earlier:
        build(model_dir, OLD, "old")
    before = files(model_dir)
    with pytest.raises(ZeroDivisionError):
        fail_to_build(model_dir)
    assert files(model_dir) == before
    assert not list(model_dir.glob(".lorry-*"))


def killed_at(operation, work):
    """Do the work in another process that is gone, as after SIGKILL, at its nth change of the disk; return its code."""
    child = os.fork()
    if child == 0:
        left = iter(range(operation))

        def counted(function):
            def call(*arguments, **options):
                if next(left, None) is None:
                    os._exit(9)
                return function(*arguments, **options)

            return call

        for name in ("rename", "mkdir", "rmdir", "unlink", "replace"):
            setattr(os, name, counted(getattr(os, name)))
        try:
            work()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("earlier", [True, False], ids=["earlier model", "no model"])
def test_wherever_a_run_is_killed_the_next_one_finds_a_whole_model(tmp_path, earlier):
    """At every change of the disk: the old model or the new one, and never a folder that the next run refuses."""
    seen = []
    for operation in range(100):
        folder = tmp_path / str(operation)
        folder.mkdir()
        if earlier:
            build(folder, OLD, "old")
            write(folder, {"notes.txt"}, "mine")
        ended = killed_at(operation, lambda folder=folder: build(folder))
        check_model_dir(folder)
        recovered = recover(folder)
        mine = {"notes.txt"} if earlier else set()
        others = {name for name in files(folder) if name.startswith(".lorry-")}
        state = {name: (folder / name).read_bytes() for name in files(folder) - others - mine}
        made = json.loads(state["lorry.json"])["made"] if state else None
        assert set(state) == {"new": NEW, "old": OLD, None: set()}[made]
        assert all(made.encode() in content for content in state.values())
        assert made == "new" or not recovered
        seen.append(made)
        build(folder, NEW, "next")
        assert is_model(folder, NEW | mine, "next") or mine
        assert files(folder) == NEW | mine
        if ended == 0:
            break
    assert ended == 0
    assert seen.index("new") > 3
    assert set(seen[seen.index("new") :]) == {"new"}
    assert len(seen) > 12


def test_wherever_runs_are_killed_what_others_wrote_is_kept(tmp_path):
    """A run at every change of the disk, and the next one again while it finishes what the first had begun."""
    mine = {"notes.txt", "adapter/mine", "2_Normalize/a", "2_Normalize/b", "2_Normalize/inside/c"}
    for operation in range(100):
        folder = tmp_path / str(operation)
        build(folder, OLD, "old")
        write(folder, mine, "mine")
        ended = killed_at(operation, lambda folder=folder: build(folder))
        killed_at(operation % 7, lambda folder=folder: recover(folder))
        check_model_dir(folder)
        recover(folder)
        build(folder)
        assert files(folder) == NEW | mine, operation
        assert all((folder / name).read_text() == "mine" for name in mine)
        if ended == 0:
            break
    assert ended == 0
    assert operation > 15


class RefusedError(Exception):
    """Ends the block of `staging`, so that no model is put in place."""


def refuse(model_dir, place, names=NEW, content="new"):
    """Build a model and keep it aside; return where it is."""
    model_dir.mkdir(parents=True, exist_ok=True)
    kept = None
    with contextlib.suppress(RefusedError), staging(model_dir) as folder:
        write(folder, names, content)
        (folder / "model.safetensors").chmod(0o600)
        kept = keep_aside(folder, place, "ndcg@10 is café")
        raise RefusedError
    return kept


KEPT_ASIDE = NEW | {"REFUSED.txt"}


@pytest.fixture(params=["one disk", "two disks"])
def disks(request, monkeypatch):
    """Let a rename from one folder to another fail, as between two disks."""
    rename = os.rename

    def on_one_disk(source, target):
        if Path(source).parent != Path(target).parent:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        rename(source, target)

    if request.param == "two disks":
        monkeypatch.setattr(os, "rename", on_one_disk)


@pytest.mark.usefixtures("disks")
def test_a_refused_model_is_kept_aside_whole_with_the_reason(tmp_path):
    model_dir, place = tmp_path / "model", tmp_path / "output" / "refused"
    place.parent.mkdir()
    assert refuse(model_dir, place) == place
    assert files(tmp_path) == {f"output/refused/{name}" for name in KEPT_ASIDE}
    assert (place / "REFUSED.txt").read_text("utf-8") == "ndcg@10 is café\n"
    assert sorted(json.loads((place / "lorry.json").read_text())["files"]) == sorted(KEPT_ASIDE)
    assert (place / "model.safetensors").stat().st_mode == (place / "config.json").stat().st_mode
    assert list(tmp_path.rglob(".*")) == []


@pytest.mark.usefixtures("disks")
def test_an_earlier_refused_model_is_replaced(tmp_path):
    model_dir, place = tmp_path / "model", tmp_path / "refused"
    write(tmp_path, {".refused.part/half", ".refused.old/half"}, "of a killed run")
    refuse(model_dir, place, OLD, "old")
    assert refuse(model_dir, place) == place
    assert files(tmp_path) == {f"refused/{name}" for name in KEPT_ASIDE}
    assert (place / "config.json").read_text() == "new"


def a_file(place, model_dir):
    place.write_text("mine")


def a_folder(place, model_dir):
    write(place, {"thesis.tex"}, "mine")


def a_good_model(place, model_dir):
    build(place, OLD, "old")


def a_note_in_it(place, model_dir):
    refuse(model_dir, place, content="old")
    write(place, {"1_Pooling/notes.txt"}, "mine")


def a_link_in_it(place, model_dir):
    refuse(model_dir, place, content="old")
    (place / "adapter" / "link").symlink_to("nowhere")


def a_link_to_one(place, model_dir):
    place.symlink_to(refuse(model_dir, place.with_name("elsewhere"), content="old"))


def a_link_to_nowhere(place, model_dir):
    place.symlink_to("nowhere")


@pytest.mark.parametrize(
    "make", [a_file, a_folder, a_good_model, a_note_in_it, a_link_in_it, a_link_to_one, a_link_to_nowhere]
)
def test_what_is_no_refused_model_is_left_and_the_new_one_gets_another_name(tmp_path, make):
    model_dir, place = tmp_path / "model", tmp_path / "refused"
    make(place, model_dir)
    before = {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}
    kept = refuse(model_dir, place)
    assert kept == tmp_path / "refused.kept"
    assert files(kept) == KEPT_ASIDE
    assert {path: path.is_file() and path.read_bytes() for path in before} == before
    assert {path.name for path in tmp_path.iterdir()} - {path.name for path in before} <= {"model", "refused.kept"}


def test_what_is_refused_leaves_the_model_in_place(tmp_path):
    model_dir = tmp_path / "model"
    build(model_dir, OLD, "old")
    refuse(model_dir, tmp_path / "refused")
    assert is_model(model_dir, OLD, "old")
    assert not list(model_dir.glob(".lorry-*"))


def test_a_disk_that_is_full_while_a_model_is_kept_aside_leaves_the_earlier_one(tmp_path, monkeypatch):
    model_dir, place = tmp_path / "model", tmp_path / "refused"
    refuse(model_dir, place, content="old")

    def full(source, target):
        write(target, {"config.json"}, "half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(model_folder.shutil, "move", full)
    with pytest.raises(OutputError, match=r"refused cannot be written: No space left on device"):
        refuse(model_dir, place)
    assert files(place) == KEPT_ASIDE
    assert (place / "config.json").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir() if path != place] == ["model"]


def test_wherever_a_run_is_killed_a_refused_model_is_whole(tmp_path):
    for operation in range(100):
        model_dir, place = tmp_path / str(operation) / "model", tmp_path / str(operation) / "refused"
        refuse(model_dir, place, content="old")
        ended = killed_at(operation, lambda model_dir=model_dir, place=place: refuse(model_dir, place))
        assert not place.exists() or files(place) == KEPT_ASIDE
        refuse(model_dir, place, content="next")
        assert files(place) == KEPT_ASIDE
        assert (place / "config.json").read_text() == "next"
        assert {path.name for path in place.parent.iterdir()} == {"model", "refused"}
        if ended == 0:
            break
    assert ended == 0
    assert operation > 8


MANIFESTS = [
    '{"files": null}', '{"files": {"a": 1}}', '{"files": "x"}', '{"files": [1]}', '{"files": [""]}', '{"files": ["."]}',
    '{"files": ["/"]}', '{"files": ["../other"]}', '{"files": ["a/../../other"]}', '{"files": [".lorry-ready/x"]}',
    "[]", "null", "{", "[" * 200_000,
]  # fmt: skip


@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda text: text[:30])
def test_a_list_of_files_that_is_none_of_lorrys_is_refused_at_the_start(tmp_path, manifest):
    """What it names would be moved."""
    (tmp_path / "other").mkdir()
    folder = tmp_path / "model"
    write(folder, {"config.json"}, "mine")
    (folder / "lorry.json").write_text(manifest)
    ended = lorry("train", model_dir=folder, output_data_dir=tmp_path / "output", train=tmp_path / "train")
    assert ended.code == 1
    assert ended.lines[-1] == (
        f"error: {folder} is not empty and holds no model of Lorry's (its lorry.json is none of Lorry's). "
        "Give an empty or new folder as --model_dir."
    )
    assert files(tmp_path) == {"model/config.json", "model/lorry.json"}
    assert (tmp_path / "other").is_dir()


def test_a_folder_of_something_else_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    (tmp_path / ".lorry-new").mkdir()
    with pytest.raises(UserError, match=r"not empty and holds no model of Lorry's \(thesis.tex\)"):
        check_model_dir(tmp_path)
    assert files(tmp_path) == {"thesis.tex"}
    assert (tmp_path / ".lorry-new").is_dir(), "another run may be building there"


def test_a_full_disk_is_one_line_and_leaves_the_earlier_model(tmp_path, monkeypatch):
    build(tmp_path, OLD, "old")
    monkeypatch.setattr(model_folder, "_complete", lambda folder: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(OutputError, match=r"cannot be written: No space left\. Check free space"):
        build(tmp_path)
    assert is_model(tmp_path, OLD, "old")


def test_a_file_in_the_way_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "model"):
        with pytest.raises(UserError, match=r"cannot be written.*--model_dir"):
            check_writable(path, "--model_dir")


def test_checking_leaves_no_trace(tmp_path):
    check_writable(tmp_path / "model", "--model_dir")
    check_model_dir(tmp_path / "model")
    check_model_dir(tmp_path / "nowhere")
    assert files(tmp_path) == set()
    assert not (tmp_path / "nowhere").exists()


def test_a_second_run_is_refused_and_a_killed_one_leaves_no_lock(tmp_path):
    script = (
        "import sys, pathlib, lorry.outputs as o\n"
        "with o.claimed(pathlib.Path(sys.argv[1]), '--model_dir'): print('mine', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "mine\n"
        with pytest.raises(UserError, match=r"another run is writing to .* give another --model_dir"):
            claimed(tmp_path, "--model_dir").__enter__()
        other.kill()
        other.wait()
        with claimed(tmp_path, "--model_dir"):
            pass
    assert files(tmp_path) == set()


def test_a_folder_in_which_nothing_was_written_goes_again(tmp_path):
    (tmp_path / "mine").mkdir()
    for name in ("mine", "new"):
        with claimed(tmp_path / name, "--model_dir"):
            assert (tmp_path / name).is_dir()
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize("name", ["train", "validation", "test", "output_data_dir", "checkpoint_dir"])
def test_a_folder_inside_model_dir_is_refused(tmp_path, name):
    for place in ("model", "model/inside", "other/../model/x"):
        config = TrainConfig(model_dir=str(tmp_path / "model"), **{name: str(tmp_path / place)})
        with pytest.raises(UserError, match=f"{name} .* lies in model_dir"):
            check_apart(config)
    check_apart(TrainConfig(model_dir=str(tmp_path / "model"), **{name: str(tmp_path / "model2")}))


def test_the_base_model_is_not_replaced_by_its_own_tuned_model(tmp_path):
    base = tmp_path / "base"
    base.mkdir()
    (tmp_path / "link").symlink_to(base)
    for model_dir in ("base", "link"):
        with pytest.raises(UserError, match=r"pretrained_model .* lies in model_dir"):
            check_apart(TrainConfig(pretrained_model=str(base), model_dir=str(tmp_path / model_dir)))


def test_results_do_not_go_among_the_pairs(tmp_path):
    config = TrainConfig(train=str(tmp_path), output_data_dir=str(tmp_path / "x" / ".."), model_dir="elsewhere")
    with pytest.raises(UserError, match="output_data_dir is the folder of the train pairs"):
        check_apart(config)


@pytest.mark.parametrize("name", ["train", "validation", "test"])
def test_results_do_not_go_over_a_file_of_pairs(tmp_path, name):
    (tmp_path / "training.jsonl").write_text('{"query": "lamp", "product_title": "lamp", "label": 1}\n')
    config = TrainConfig(
        **{name: str(tmp_path / "training.jsonl")}, output_data_dir=str(tmp_path), model_dir="elsewhere"
    )
    with pytest.raises(UserError, match=f"output_data_dir is the folder of the {name} pairs"):
        check_apart(config)
    check_apart(dataclasses.replace(config, output_data_dir=str(tmp_path / "output")))


def test_results_and_checkpoints_do_not_share_a_folder(tmp_path):
    config = TrainConfig(
        output_data_dir=str(tmp_path), checkpoint_dir=str(tmp_path / "x" / ".."), model_dir="elsewhere"
    )
    with pytest.raises(UserError, match=r"output_data_dir and checkpoint_dir are the same folder.*--checkpoint_dir"):
        check_apart(config)


MINE = {
    "metrics.json": [
        "{}", "[]", '{"splits": ["train"]}', '{"splits": {"train": {"num_examples": 3}}}', "a = 1", "[" * 200_000,
    ],
    "training.jsonl": ['{"query": "lamp", "product_title": "lamp", "label": 1}\n', "query\tlabel\n", "[]\n"],
    "report.json": ["{}", "[]", '{"format": "A4"}', "a = 1"],
    "report.html": ["<h1>Sales in May</h1>", ""],
}  # fmt: skip


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in MINE.items() for text in texts])
def test_a_file_of_somebody_elses_is_not_replaced_by_a_result(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    ended = lorry("train", train="pairs", model_dir=tmp_path / "model", output_data_dir=tmp_path)
    assert ended.code == 1
    assert "--output_data_dir" in ended.lines[-1]
    assert (tmp_path / name).read_text() == text


@pytest.mark.parametrize("name", MINE)
def test_what_is_no_file_is_not_replaced_by_a_result(tmp_path, name):
    (tmp_path / "output" / name).mkdir(parents=True)
    with pytest.raises(UserError, match=rf"{name} exists and was not written by Lorry.*--output_data_dir"):
        check_results(tmp_path / "output")
    (tmp_path / "output" / name).rmdir()
    os.mkfifo(tmp_path / "output" / name)
    with pytest.raises(UserError, match=rf"{name} exists and was not written by Lorry.*--output_data_dir"):
        check_results(tmp_path / "output")


def test_earlier_results_are_replaced(tmp_path):
    """A run that was stopped before its first line leaves an empty log."""
    (tmp_path / "training.jsonl").touch()
    (tmp_path / "notes.txt").write_text("mine")
    check_results(tmp_path)
    check_results(tmp_path / "nowhere")


def test_a_data_set_of_the_hub_is_no_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check_apart(TrainConfig(model_dir=".", train="hf://datasets/owner/name", output_data_dir="../output"))


def test_space_is_counted_per_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(outputs.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 10_000_000})())
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    check_space({tmp_path / "a": 5_000_000, tmp_path / "b": 5_000_000})
    with pytest.raises(UserError, match=r"10 MB free, and the run needs about 11 MB"):
        check_space({tmp_path / "a": 5_000_000, tmp_path / "b": 6_000_000})


def test_json_is_written_completely_or_not_at_all(tmp_path):
    write_json(tmp_path / "metrics.json", {"a": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "metrics.json", {"a": object()})
    assert json.loads((tmp_path / "metrics.json").read_text()) == {"a": 1}
    (tmp_path / "report.html").mkdir()
    with pytest.raises(OutputError, match=r"report.html cannot be written: Is a directory"):
        outputs.write_text(tmp_path / "report.html", "x")
    with pytest.raises(OutputError, match=r"metrics.json cannot be written: its name or its text is not UTF-8"):
        write_json(tmp_path / "metrics.json", {"a": os.fsdecode(b"\xff")})
    assert json.loads((tmp_path / "metrics.json").read_text()) == {"a": 1}
    assert files(tmp_path) == {"metrics.json"}

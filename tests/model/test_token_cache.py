"""The cache of tokens on disk: damage, leftovers, other users, its size, a full disk, a stop while it is written."""

import hashlib
import io
import json
import logging
import os
import resource
import shutil
import signal
import stat
import subprocess
import sys
import time
from contextlib import contextmanager

import numpy as np
import pytest

from lorry import caches
from lorry.config import PairOptions
from lorry.data.pairs import read_channel
from lorry.errors import UserError
from lorry.model import tokens
from lorry.model.pretrained import find_pretrained
from lorry.model.tokens import tokenize
from lorry.signals import Stop, StopRequestedError

AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to somebody else")
SOMEBODY = 65_534


@pytest.fixture
def base(tiny_model):
    return find_pretrained(str(tiny_model("bert")))


@pytest.fixture(scope="module")
def shops(tmp_path_factory, shop_pairs):
    """Pairs of two shops."""
    folder = tmp_path_factory.mktemp("shops")
    return [
        read_channel(shop_pairs(folder / str(seed), queries=20, seed=seed), PairOptions())["all"] for seed in (1, 2)
    ]


@pytest.fixture
def pairs(shops):
    return shops[0]


def content(texts):
    return texts.tokens.tolist(), texts.offsets.tolist()


def entry_in(cache):
    (entry,) = cache.iterdir()
    return entry


def flip(path):
    """Change one byte, not the size."""
    held = bytearray(path.read_bytes())
    held[len(held) // 2] ^= 1
    path.write_bytes(held)


def swap_two_offsets(entry):
    offsets = np.load(entry / "offsets.npy")
    offsets[[1, 2]] = offsets[[2, 1]]
    np.save(entry / "offsets.npy", offsets)


def objects_for_offsets(entry):
    np.save(entry / "offsets.npy", np.array([{}, []], object))


def file_for_a_folder(entry):
    shutil.rmtree(entry)
    entry.write_text("no folder")


def offsets_of(content):
    """Return what replaces the offsets, with a checksum that fits."""

    def damage(entry):
        (entry / "offsets.npy").write_bytes(content)
        checksums = json.loads((entry / "checksums.json").read_text())
        checksums["offsets.npy"] = hashlib.sha256(content).hexdigest()
        (entry / "checksums.json").write_text(json.dumps(checksums))

    return damage


def pipe_for(name):
    def damage(entry):
        (entry / name).unlink()
        os.mkfifo(entry / name)

    return damage


def folder_for_tokens(entry):
    (entry / "tokens.bin").unlink()
    (entry / "tokens.bin").mkdir()


def header_of(size):
    """Return the header of an array of so many offsets."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<i8", "fortran_order": False, "shape": (size,)})
    return file.getvalue()


def forget(name):
    return lambda entry: (entry / name).unlink()


def write(name, text):
    return lambda entry: (entry / name).write_text(text)


DAMAGE = {
    "another token": lambda entry: flip(entry / "tokens.bin"),
    "another offset": lambda entry: flip(entry / "offsets.npy"),
    "offsets that fall": swap_two_offsets,
    "offsets that are objects": objects_for_offsets,
    "offsets that are text": write("offsets.npy", "no array"),
    "no offsets": forget("offsets.npy"),
    "no tokens": forget("tokens.bin"),
    "empty tokens": write("tokens.bin", ""),
    "half of the tokens": lambda entry: os.truncate(entry / "tokens.bin", 100),
    "more tokens": lambda entry: (entry / "tokens.bin").open("ab").write(b"\0\0\0\0"),
    "no checksums": forget("checksums.json"),
    "checksums that are no JSON": write("checksums.json", "{"),
    "checksums that are a list": write("checksums.json", "[]"),
    "checksums nested too deeply": write("checksums.json", "[" * 200_000),
    "offsets with a broken header": offsets_of(b"\x93NUMPY\x01\x00\x10\x00" + b"{" * 15 + b"\n"),
    "offsets larger than memory": offsets_of(header_of(10**17)),
    "offsets that are words": offsets_of(b"no array"),
    "a pipe for tokens": pipe_for("tokens.bin"),
    "a pipe for offsets": pipe_for("offsets.npy"),
    "a pipe for checksums": pipe_for("checksums.json"),
    "a folder for tokens": folder_for_tokens,
    "nothing": lambda entry: [path.unlink() for path in entry.iterdir()],
    "a file for a folder": file_for_a_folder,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_noticed_and_mended_once(pairs, base, tmp_path, caplog, damage):
    whole = content(tokenize(pairs, base, tmp_path))
    entry = entry_in(tmp_path)
    DAMAGE[damage](entry)
    with caplog.at_level(logging.INFO, "lorry"):
        assert content(tokenize(pairs, base, tmp_path)) == whole
        assert content(tokenize(pairs, base, tmp_path)) == whole
    (said,) = caplog.messages
    assert said.startswith(f"the token cache {entry} is damaged (")
    assert said.endswith("): tokenising again")
    assert entry_in(tmp_path) == entry


def leave_behind(cache, seconds):
    """What a killed writer leaves."""
    left = cache / "writing-abc"
    left.mkdir(parents=True)
    (left / "tokens.bin").write_bytes(b"\1\0")
    os.utime(left, (time.time() - seconds,) * 2)
    return left


def test_what_a_killed_run_left_is_cleared(pairs, base, tmp_path):
    leave_behind(tmp_path, 3600)
    tokenize(pairs, base, tmp_path)
    assert entry_in(tmp_path).name.startswith("tokens-")


def test_what_another_run_is_writing_is_left_alone(pairs, base, tmp_path):
    left = leave_behind(tmp_path, 3600)
    lock = "import fcntl, sys; file = open(sys.argv[1]); fcntl.flock(file, fcntl.LOCK_EX); print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", lock, str(left / "tokens.bin")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        other.stdout.readline()
        tokenize(pairs, base, tmp_path)
        assert left.is_dir()
        other.communicate(b"\n")


def fill(cache, name, gigabytes, days):
    """Put an entry of so many (sparse) gigabytes there, last used so many days ago."""
    entry = cache / f"tokens-{name}"
    entry.mkdir(parents=True)
    with (entry / "tokens.bin").open("wb") as file:
        file.truncate(gigabytes * 10**9)
    os.utime(entry, (time.time() - 86_400 * days,) * 2)


def test_the_longest_unused_goes_where_the_cache_grows_too_large(shops, base, tmp_path):
    fill(tmp_path, "fortnight", 9, 14)
    mine = tokenize(shops[0], base, tmp_path)  # nothing goes: a run's own entry is small
    fill(tmp_path, "week", 9, 7)
    names = {path.name for path in tmp_path.iterdir()}
    for path in tmp_path.iterdir():
        if path.name not in ("tokens-fortnight", "tokens-week"):
            os.utime(path, (0, 0))  # in use by this run, however old
    other = tokenize(shops[1], base, tmp_path)
    left = {path.name for path in tmp_path.iterdir()}
    assert names - left == {"tokens-fortnight"} | (
        {"tokens-week"} if shutil.disk_usage(tmp_path).total < 9e10 else set()
    )
    assert content(mine) == content(tokenize(shops[0], base, tmp_path / "again"))
    assert content(other) == content(tokenize(shops[1], base, tmp_path / "again"))


def test_reading_an_entry_counts_as_use(shops, base, tmp_path):
    tokenize(shops[0], base, tmp_path)
    entry = entry_in(tmp_path)
    os.utime(entry, (0, 0))
    tokenize(shops[0], base, tmp_path)
    assert time.time() - entry.stat().st_mtime < 3600


@contextmanager
def environment(monkeypatch, **values):
    """Set these variables and unset the other ones that say where the cache is."""
    with monkeypatch.context() as patch:
        for name in ("LORRY_CACHE", "XDG_CACHE_HOME"):
            patch.delenv(name, raising=False)
        for name, value in values.items():
            patch.setenv(name, str(value))
        patch.setattr("tempfile.tempdir", None)
        caches._folder_of_this_run.cache_clear()
        yield


def entries(folder):
    return sorted(folder.rglob("tokens-*"))


def test_the_cache_is_where_the_variables_say(pairs, base, tmp_path, monkeypatch):
    home, given, caches = tmp_path / "home", tmp_path / "given", tmp_path / "caches"
    places = [
        ({"HOME": home}, home / ".cache" / "lorry" / "tokens"),
        ({"HOME": home, "XDG_CACHE_HOME": "relative"}, home / ".cache" / "lorry" / "tokens"),
        ({"HOME": home, "XDG_CACHE_HOME": caches}, caches / "lorry" / "tokens"),
        ({"HOME": home, "XDG_CACHE_HOME": caches, "LORRY_CACHE": given}, given / "tokens"),
    ]
    for values, expected in places:
        with environment(monkeypatch, **values):
            tokenize(pairs, base)
        (entry,) = entries(expected)
        assert stat.S_IMODE(expected.stat().st_mode) == 0o700
        shutil.rmtree(entry)
    assert not entries(tmp_path)


def test_a_folder_that_others_may_write_is_closed_to_them(pairs, base, tmp_path, monkeypatch):
    folder = tmp_path / "lorry" / "tokens"
    folder.mkdir(parents=True)
    for each in (folder, folder.parent):
        each.chmod(0o777)
    with environment(monkeypatch, XDG_CACHE_HOME=tmp_path):
        tokenize(pairs, base)
    assert [stat.S_IMODE(each.stat().st_mode) for each in (folder, folder.parent)] == [0o700, 0o700]
    assert entries(folder)


def test_what_else_is_in_lorry_cache_stays_as_it_is(pairs, base, tmp_path, monkeypatch):
    (tmp_path / "tokens-of-mine").mkdir()
    (tmp_path / "writing-a-book").mkdir()
    for path in (tmp_path / "tokens-of-mine", tmp_path / "writing-a-book"):
        os.utime(path, (0, 0))
    tmp_path.chmod(0o755)
    with environment(monkeypatch, LORRY_CACHE=tmp_path):
        tokenize(pairs, base)
    assert {path.name for path in tmp_path.iterdir()} == {"tokens-of-mine", "writing-a-book", "tokens"}
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755


@pytest.mark.parametrize("home", ["/proc/nowhere", "/dev/null"])
def test_a_home_that_cannot_be_written(pairs, base, tmp_path, monkeypatch, home):
    with environment(monkeypatch, HOME=home, TMPDIR=tmp_path):
        tokenize(pairs, base)
    assert entries(tmp_path / f"lorry-{os.getuid()}" / "tokens")


def plant_folder(place):
    place.mkdir(mode=0o777)
    os.chown(place, SOMEBODY, SOMEBODY)


def plant_link(place):
    place.symlink_to(place.parent / "target")
    (place.parent / "target").mkdir()
    os.lchown(place, SOMEBODY, SOMEBODY)


def plant_file(place):
    place.touch()


@pytest.mark.parametrize(
    "plant", [pytest.param(plant_folder, marks=AS_ROOT), pytest.param(plant_link, marks=AS_ROOT), plant_file]
)
def test_what_somebody_else_has_put_into_the_temporary_folder_is_avoided(pairs, base, tmp_path, monkeypatch, plant):
    place = tmp_path / f"lorry-{os.getuid()}"
    plant(place)
    before = sorted(tmp_path.rglob("*"))
    with environment(monkeypatch, HOME="/proc/nowhere", TMPDIR=tmp_path):
        texts = tokenize(pairs, base)
    (entry,) = entries(tmp_path)
    own = entry.parent
    assert own.name.startswith("lorry-")
    assert not own.is_relative_to(place)
    assert stat.S_IMODE(own.stat().st_mode) == 0o700
    assert sorted(path for path in tmp_path.rglob("*") if not path.is_relative_to(own)) == before
    assert len(texts)


def test_a_link_of_ones_own_is_followed(pairs, base, tmp_path, monkeypatch):
    (tmp_path / "large disk").mkdir()
    (tmp_path / "lorry").symlink_to(tmp_path / "large disk")
    with environment(monkeypatch, XDG_CACHE_HOME=tmp_path):
        tokenize(pairs, base)
    assert entries(tmp_path / "large disk")


@AS_ROOT
def test_somebody_elses_folder_in_lorry_cache_is_refused(pairs, base, tmp_path, monkeypatch):
    plant_folder(tmp_path / "tokens")
    with environment(monkeypatch, LORRY_CACHE=tmp_path), pytest.raises(UserError) as caught:
        tokenize(pairs, base)
    assert str(caught.value) == (
        f"LORRY_CACHE {tmp_path} cannot be used: {tmp_path / 'tokens'} belongs to another user. "
        "Set it to a folder that you can write."
    )


@pytest.mark.parametrize(("folder", "why"), [("/proc/nowhere", "No such file"), ("/dev/null", "File exists")])
def test_a_lorry_cache_that_cannot_be_written_is_refused(pairs, base, monkeypatch, folder, why):
    with environment(monkeypatch, LORRY_CACHE=folder), pytest.raises(UserError) as caught:
        tokenize(pairs, base)
    assert f"LORRY_CACHE {folder} cannot be used: {why}" in str(caught.value)


@contextmanager
def room_for(size):
    """Let no file grow larger: to the program as if its disk were full."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    kept = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, kept)


@pytest.mark.parametrize("size", [50, 2000])
def test_a_full_disk_is_one_line_and_leaves_nothing(pairs, base, tmp_path, size):
    with room_for(size), pytest.raises(UserError) as caught:
        tokenize(pairs, base, tmp_path)
    assert str(caught.value) == (
        f"{tmp_path} cannot be written: File too large. "
        "Free some space, or set LORRY_CACHE to a folder on another disk."
    )
    assert not list(tmp_path.iterdir())


class TestStop:
    """A stop while texts are tokenised."""

    def test_sigterm_is_heard_between_chunks_and_leaves_nothing(self, pairs, base, tmp_path, monkeypatch):
        stop = Stop()
        kept = signal.signal(signal.SIGTERM, stop.request)
        encode = tokens._encode

        def encode_and_be_stopped(*arguments):
            for number, part in enumerate(encode(*arguments)):
                if number == 3:
                    assert list(tmp_path.glob("writing-*/tokens.bin"))
                    os.kill(os.getpid(), signal.SIGTERM)
                yield part

        monkeypatch.setattr(tokens, "CHUNK", 10)
        monkeypatch.setattr(tokens, "_encode", encode_and_be_stopped)
        with pytest.raises(StopRequestedError), stop.immediately():
            tokenize(pairs, base, tmp_path)
        signal.signal(signal.SIGTERM, kept)
        assert not list(tmp_path.iterdir())

    def test_a_stop_at_any_point_leaves_a_cache_that_works(self, pairs, base, tmp_path, monkeypatch):
        """Raised before a hundred different lines of Lorry's: nothing half-written is ever taken for whole."""
        monkeypatch.setattr(tokens, "CHUNK", 50)
        expected = content(tokenize(pairs, base, tmp_path / "whole"))

        def lines_run(cache, stop_at=0):
            count = 0

            def trace(frame, event, _):
                nonlocal count
                if "lorry/model/token" not in frame.f_code.co_filename:
                    return None
                if event == "line":
                    count += 1
                    if count == stop_at:
                        raise StopRequestedError
                return trace

            kept = sys.gettrace()
            sys.settrace(trace)
            try:
                tokenize(pairs, base, cache)
            finally:
                sys.settrace(kept)
            return count

        count = lines_run(tmp_path / "counted")
        stops = range(1, count, max(1, count // 100))
        for stop_at in stops:
            with pytest.raises(StopRequestedError):
                lines_run(tmp_path / "cache", stop_at)
            assert content(tokenize(pairs, base, tmp_path / "cache")) == expected
            shutil.rmtree(entries(tmp_path / "cache")[0])
        assert len(stops) > 90


def test_checksums_are_those_of_the_files(pairs, base, tmp_path):
    """So that another tool can check them: `sha256sum`."""
    tokenize(pairs, base, tmp_path)
    entry = entry_in(tmp_path)
    written = json.loads((entry / "checksums.json").read_text())
    for name, expected in written.items():
        done = subprocess.run(["sha256sum", str(entry / name)], capture_output=True, text=True, check=True)
        assert done.stdout.split()[0] == expected
    assert written.keys() == {"tokens.bin", "offsets.npy"}


def test_two_runs_at_once_share_one_entry(tiny_model, shop_pairs, tmp_path):
    """Neither waits for the other or stumbles over it."""
    program = (
        "import sys; from pathlib import Path\n"
        "from lorry.config import PairOptions; from lorry.data.pairs import read_channel\n"
        "from lorry.model.pretrained import find_pretrained; from lorry.model.tokens import tokenize\n"
        "pairs = read_channel(sys.argv[1], PairOptions())['all']\n"
        "texts = tokenize(pairs, find_pretrained(sys.argv[2]), Path(sys.argv[3]))\n"
        "print(int(texts.tokens.sum()))\n"
    )
    words = [str(shop_pairs(tmp_path / "shop")), str(tiny_model("bert")), str(tmp_path / "cache")]
    runs = [
        subprocess.Popen([sys.executable, "-c", program, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    outputs = [run.communicate(timeout=120) for run in runs]
    assert [run.returncode for run in runs] == [0, 0], outputs
    assert outputs[0][0] == outputs[1][0]
    assert entry_in(tmp_path / "cache").name.startswith("tokens-")

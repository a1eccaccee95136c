"""The file that keeps embeddings: damage, two processes at once, a disk that is full."""

import logging
import sqlite3
import subprocess
import sys

import numpy as np
import pytest

from lorry.errors import UserError
from lorry.providers.cache import VectorCache

KEYS = [bytes([number]) * 32 for number in range(100)]
VECTORS = np.random.default_rng(0).normal(size=(100, 16)).astype(np.float32)


@pytest.fixture
def path(tmp_path):
    with VectorCache(tmp_path / "model.sqlite") as cache:
        cache.store(KEYS, VECTORS)
    return tmp_path / "model.sqlite"


def test_what_was_stored_is_read(path):
    with VectorCache(path) as cache:
        assert cache.missing([KEYS[3], b"other", KEYS[1]]) == [b"other"]
        assert (cache.read([KEYS[3], KEYS[1], KEYS[3]]) == VECTORS[[3, 1, 3]]).all()
        assert cache.read([]).shape == (0, 0)
    assert [found.name for found in path.parent.iterdir()] == ["model.sqlite"]


@pytest.mark.parametrize("kind", ["no database", "empty", "cut", "middle"])
def test_a_damaged_file_is_begun_anew_with_a_warning(path, caplog, kind):
    content = path.read_bytes()
    damaged = {
        "no database": b"something else altogether" * 100,
        "empty": b"",
        "cut": content[: len(content) // 2],
        "middle": content[:4096] + b"\xff" * 4096 + content[8192:],
    }[kind]
    path.write_bytes(damaged)
    with caplog.at_level(logging.WARNING, "lorry"), VectorCache(path) as cache:
        absent = cache.missing(KEYS)
        assert absent == KEYS
        cache.store(KEYS[:5], VECTORS[:5])
        assert (cache.read(KEYS[:5]) == VECTORS[:5]).all()
    assert ("is damaged" in caplog.text) is (kind != "empty")
    with VectorCache(path) as cache:
        assert cache.missing(KEYS) == KEYS[5:]


def test_a_damaged_embedding_is_asked_for_again(path, caplog):
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE vectors SET vector = zeroblob(64) WHERE text = ?", (KEYS[7],))
        connection.execute("UPDATE vectors SET vector = 'text' WHERE text = ?", (KEYS[8],))
    connection.close()
    with caplog.at_level(logging.WARNING, "lorry"), VectorCache(path) as cache:
        assert cache.missing(KEYS) == KEYS[7:9]
        assert "2 damaged embeddings are not used" in caplog.text
        cache.store(KEYS[7:9], VECTORS[7:9])
        assert (cache.read(KEYS) == VECTORS).all()


def test_embeddings_of_two_widths_are_refused(path):
    with VectorCache(path) as cache:
        cache.store([b"other"], np.ones((1, 3)))
        with pytest.raises(UserError, match=r"embeddings of 16 and of 3 numbers: .*model.sqlite has both"):
            cache.read([KEYS[0], b"other"])


def test_a_folder_in_its_place_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"cannot be used: unable to open database file. Free some space, or set LORRY"):
        VectorCache(tmp_path)


def test_two_processes_write_at_once(tmp_path):
    code = """
import sys, numpy as np
from pathlib import Path
from lorry.providers.cache import VectorCache
with VectorCache(Path(sys.argv[1])) as cache:
    for number in range(200):
        cache.store([f"{sys.argv[2]} {number}".encode()], np.full((1, 4), number))
"""
    path = tmp_path / "model.sqlite"
    both = [subprocess.Popen([sys.executable, "-c", code, str(path), name]) for name in ("a", "b")]
    assert [process.wait() for process in both] == [0, 0]
    with VectorCache(path) as cache:
        assert cache.read([b"a 199", b"b 7"]).tolist() == [[199] * 4, [7] * 4]
        assert not cache.missing([f"{name} {number}".encode() for name in "ab" for number in range(200)])

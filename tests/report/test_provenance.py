"""Which code made a model."""

import shutil

from lorry.report.provenance import revision


def test_the_revision_may_be_given_and_is_else_the_checkouts(monkeypatch):
    monkeypatch.setenv("LORRY_REVISION", "abc")
    assert revision() == "abc"
    monkeypatch.delenv("LORRY_REVISION")
    if shutil.which("git"):
        assert revision() == "unknown" or len(revision().removesuffix("-dirty")) == 40

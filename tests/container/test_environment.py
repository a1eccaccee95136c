"""What the libraries find in the environment."""

import os

from lorry.container import environment


def test_a_local_base_model_needs_no_network(started, monkeypatch):
    monkeypatch.setattr(environment, "has_network", lambda: True)
    seen = []

    def work(config, stop, command):
        seen.append(os.environ.get("HF_HUB_OFFLINE"))

    started(work, "--pretrained_model", "bundled")
    started(work)
    assert seen == ["1", None]


def test_waiting_threads_do_not_spin_for_long(started):
    seen = []
    started(lambda config, stop, command: seen.append(os.environ["GOMP_SPINCOUNT"]))
    assert seen == ["1000"]

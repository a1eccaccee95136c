"""An /opt/ml as `docker run` or SageMaker mounts it, the command `train` on it, and the log as caplog sees it."""

import logging

import pytest

from lorry.container import train
from lorry.signals import Stop


@pytest.fixture
def root(tmp_path):
    """An /opt/ml with a train channel and nothing else."""
    train = tmp_path / "input" / "data" / "train"
    train.mkdir(parents=True)
    (train / "pairs.csv").write_text("query,text,label\n")
    return tmp_path


@pytest.fixture
def lines(caplog, monkeypatch):
    """Return the lines that Lorry logs during the test; the command line cuts its logger off from the others."""
    monkeypatch.setattr(logging.getLogger("lorry"), "propagate", True)
    with caplog.at_level(logging.INFO, "lorry"):
        yield lambda: [record.getMessage() for record in caplog.records]


@pytest.fixture
def started(root, monkeypatch):
    """Call `train` as the container does, with a trainer that does `work`."""

    def start(work, *arguments, stop=Stop):
        monkeypatch.setenv("SAGEMAKER_BASE_DIR", str(root))
        monkeypatch.setattr("sys.argv", ["train", *arguments])
        monkeypatch.setattr("lorry.pipeline.run", work)
        monkeypatch.setattr(train, "_stop", stop)
        monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
        for name in ("HF_HUB_OFFLINE", "GOMP_SPINCOUNT"):
            monkeypatch.setenv(name, "set, so that it is put back afterwards")
            monkeypatch.delenv(name)
        train._job.cache_clear()
        with pytest.raises(SystemExit) as end:
            train.train()
        return end.value.code

    return start

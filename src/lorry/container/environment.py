"""The environment variables that libraries read when they are imported."""

from __future__ import annotations

import os
from pathlib import Path

from lorry.config import TrainConfig
from lorry.container.contract import in_script_mode
from lorry.data.hub_uri import is_hub_uri
from lorry.hardware import has_network, keep_freed_memory, let_waiting_threads_sleep


def set_library_environment(config: TrainConfig) -> None:
    """Set the variables for this run, before the libraries are imported."""
    local_model = config.pretrained_model == "bundled" or Path(config.pretrained_model).is_dir()
    local_pairs = not any(is_hub_uri(location) for location in (config.train, config.validation, config.test))
    if (local_model and local_pairs) or not has_network():
        os.environ["HF_HUB_OFFLINE"] = "1"  # nothing to fetch, or no network: do not wait for a name server
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    let_waiting_threads_sleep()
    keep_freed_memory()
    if in_script_mode():  # AWS's framework images allow one thread, which slows down the tokenizer and the CPU
        os.environ["TOKENIZERS_PARALLELISM"] = "true"
        os.environ.pop("OMP_NUM_THREADS", None)

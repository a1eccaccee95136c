"""Start a training run: what `lorry train` and the container's `train` have in common.

Loading the libraries makes many objects and next to no garbage, and to look for it takes as long as a training step or
two, so Python's garbage collector waits until they are loaded and leaves them alone from then on.
"""

from __future__ import annotations

import atexit
import gc
import logging

from lorry.config import TrainConfig
from lorry.signals import Stop, StopRequestedError

log = logging.getLogger("lorry")


def start(config: TrainConfig, stop: Stop, command: str) -> None:
    """Load the libraries and run the training that `config` describes; see `pipeline.run`.

    Raises:
        UserError: Something that the user can fix.
    """
    try:
        with stop.immediately():
            gc.disable()
            from lorry.pipeline import run

            gc.freeze()
            gc.enable()
            atexit.register(gc.freeze)  # at exit, too, collecting what is left takes Python seconds
    except StopRequestedError:
        log.info("stopped before the run began; earlier checkpoints stay as they are")
        return
    run(config, stop, command)

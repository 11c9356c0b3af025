"""What a job is asked to do: the typed form of `job.created`'s `inputs` and `spec`, for who writes and who reads them."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from .envelope import Claim
from .projects import File


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """An ingest job whose rows are wanted."""

    job_id: str
    file_id: str = ""


class TrainInputs(msgspec.Struct, frozen=True, kw_only=True):
    """A train job reads the rows of the files that the project has when it is created, and of the examples generated last, waiting for those that are still
    being made, less the examples deleted before it: the log says which."""

    project_id: str
    sources: list[Source] = []
    """The jobs whose rows are wanted, where they are not all that the project has: of jobs from before the log was asked."""


class Ancestor(msgspec.Struct, frozen=True, kw_only=True):
    """A run whose model another one begins with: weights of its own (`full`), or an adapter that is merged into what came before it."""

    job_id: str
    project_id: str
    method: Literal["lora", "qlora", "full"]
    files: dict[str, Claim]
    """By name. Those of the last one have the tokenizer and the chat template too."""


class FineTune(msgspec.Struct, frozen=True, kw_only=True):
    """How a language model is fine-tuned. Bounds are part of the contract: whoever writes a spec checks them by decoding it."""

    base_model: Annotated[str, Meta(min_length=1, max_length=300)]
    """A Hugging Face id, a folder that the training service can read, `trainyard/tiny-llama`, or `trainyard/<job id>` of a train job."""
    revision: str = ""
    """The commit of the hub's repository that was resolved; empty: its newest."""
    ancestors: list[Ancestor] = []
    """What a base that was trained here is made of, the oldest first."""
    root: str = ""
    """The model under them, where the first is an adapter; with its commit."""
    root_revision: str = ""
    method: Literal["lora", "qlora", "full"] = "lora"
    preset: Annotated[str, Meta(max_length=100)] = ""
    """What it began with, for people: its hyperparameters are among those below."""
    smoke: bool = False
    """The base model is replaced by a tiny random one of the same architecture: all of the path runs, the weights are worthless."""
    num_epochs: Annotated[float, Meta(gt=0, le=100)] = 3.0
    max_steps: Annotated[int, Meta(ge=0, le=10_000_000)] = 0
    """0: as many as the epochs need."""
    learning_rate: Annotated[float, Meta(gt=0, lt=1)] = 2e-4
    lr_scheduler: Literal["cosine", "linear", "constant"] = "cosine"
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw_8bit", "adafactor"] = "adamw"
    warmup_ratio: Annotated[float, Meta(ge=0, lt=1)] = 0.03
    weight_decay: Annotated[float, Meta(ge=0, le=1)] = 0.01
    max_grad_norm: Annotated[float, Meta(ge=0, le=1000)] = 1.0
    """0: gradients are not clipped."""
    per_device_batch_size: Annotated[int, Meta(ge=1, le=1024)] = 4
    gradient_accumulation_steps: Annotated[int, Meta(ge=1, le=1024)] = 4
    """One optimizer step learns from batch size x accumulation rows, however they are packed."""
    max_seq_length: Annotated[int, Meta(ge=8, le=1_048_576)] = 2048
    lora_r: Annotated[int, Meta(ge=1, le=1024)] = 16
    lora_alpha: Annotated[int, Meta(ge=1, le=4096)] = 32
    lora_dropout: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    train_on: Literal["completions", "everything"] = "completions"
    gradient_checkpointing: bool = False
    eval_steps: Annotated[int, Meta(ge=0, le=1_000_000)] = 0
    """Steps between evaluations; 0: at the end of every epoch."""
    save_steps: Annotated[int, Meta(ge=0, le=1_000_000)] = 0
    """Steps between checkpoints; 0: at the end of every epoch, and at least every ten minutes."""
    early_stopping_patience: Annotated[int, Meta(ge=0, le=1000)] = 0
    """Evaluations without a better loss after which a run ends; 0: never."""
    seed: Annotated[int, Meta(ge=0, lt=2**31)] = 42


class ExportInputs(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The export job reads the story of a train job that has completed."""

    project_id: str
    training_job_id: str
    merged: bool = False
    """The whole model is wanted besides its adapter: the stage `training` merges it first. A run of all weights has left a whole model already."""


class ChunkInputs(msgspec.Struct, frozen=True, kw_only=True):
    """The chunk job reads the documents that the project has when it is created: the log says which."""

    project_id: str


class ChunkSpec(msgspec.Struct, frozen=True, kw_only=True):
    """How documents are divided."""

    chunk_size_tokens: Annotated[int, Meta(ge=16, le=8192)] = 512
    """At most, never more."""
    chunk_overlap_tokens: Annotated[int, Meta(ge=0, le=4096)] = 50
    """Of the chunk before, repeated at the beginning of the next; at most half of the size."""
    base_model: Annotated[str, Meta(max_length=300)] = ""
    """Whose tokens are counted, as in FineTune; empty: those of an estimate that no model's tokenizer exceeds by much."""
    revision: str = ""

    def __post_init__(self) -> None:
        if self.chunk_overlap_tokens * 2 > self.chunk_size_tokens:
            raise ValueError(f"`chunk_overlap_tokens` can be at most half of `chunk_size_tokens`: {self.chunk_size_tokens // 2} here")


class GenerateInputs(msgspec.Struct, frozen=True, kw_only=True):
    """The generate job reads the chunks of this chunk job, and waits for it where it still runs."""

    project_id: str
    chunks: str
    """The chunk job's id."""


class GenerateSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Which examples are made of the chunks. How many of which chunk follows from this and the chunks alone."""

    task_type: Literal["qa", "instruction", "summarization", "summarisation", "chat"] = "instruction"
    preview: bool = False
    """A few, spread over the documents, in a split of their own."""
    num_examples: Annotated[int, Meta(ge=0, le=1_000_000)] = 0
    """0: 10 for a preview, else 2,000."""
    examples_per_chunk: Annotated[int, Meta(ge=1, le=50)] = 5
    """At most."""
    model: Annotated[str, Meta(max_length=300)] = ""
    """A name that the endpoint knows; empty: the endpoint's default. Without an endpoint nobody reads it."""
    train_share: Annotated[float, Meta(gt=0, le=1)] = 0.9
    """The other chunks are held out for evaluation, each with all of its examples."""
    seed: Annotated[int, Meta(ge=0, lt=2**31)] = 42


class DatasetInputs(msgspec.Struct, frozen=True, kw_only=True):
    """The job reads one uploaded file: a table, or a ZIP of one table or of images."""

    dataset_id: str
    file: File


class DatasetSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What people said of a data set when they brought it; the rest is told by its content."""

    dataset_type: Annotated[str, Meta(max_length=50)] = ""
    """`classification` and `regression` decide the task; anything else leaves it to the target."""
    target: Annotated[str, Meta(max_length=200)] = ""
    """Empty: the column `label`, `target`, `class` or `y`, else the last one."""


class FitInputs(msgspec.Struct, frozen=True, kw_only=True):
    """The train job reads what the prepare job `source` made of a data set, and waits for it where it still runs."""

    dataset_id: str
    source: str


MEASURED = {"classification": ("val_loss", "val_accuracy", "val_f1"), "regression": ("val_loss", "val_mae", "val_rmse", "val_r2")}
"""What early stopping can go by, for each task."""


class Fit(msgspec.Struct, frozen=True, kw_only=True):
    """How a model is fitted to a data set: to a table, or to images, as the data set has it."""

    trainer: Literal["fit"] = "fit"
    model_type: Annotated[str, Meta(min_length=1, max_length=300)]
    """One of the platform's, or for images the id of a classifier on the model hub."""
    smoke: bool = False
    """A model of images is replaced by a tiny one of the same architecture."""
    epochs: Annotated[int, Meta(ge=1, le=10_000)] = 100
    """Gradient boosting: rounds, one tree (or one for each class) in each."""
    batch_size: Annotated[int, Meta(ge=1, le=65_536)] = 32
    learning_rate: Annotated[float, Meta(gt=0, lt=1)] = 1e-3
    optimizer: Literal["adam", "adamw", "sgd", "rmsprop"] = "adam"
    scheduler: Literal["constant", "cosine", "linear", "step"] = "constant"
    weight_decay: Annotated[float, Meta(ge=0, le=1)] = 0.0
    momentum: Annotated[float, Meta(ge=0, lt=1)] = 0.9
    """Of sgd and rmsprop."""
    dropout: Annotated[float, Meta(ge=0, lt=1)] = 0.1
    max_depth: Annotated[int, Meta(ge=0, le=64)] = 0
    """Of a tree; 0: as deep as its leaves allow."""
    num_leaves: Annotated[int, Meta(ge=2, le=4096)] = 31
    class_weights: Literal["none", "balanced"] = "none"
    augment: bool = True
    """Images are flipped, cropped and shaded anew in each epoch."""
    pretrained: bool = True
    """Images: start with the weights that the hub has for the architecture, where it can be reached."""
    image_size: Annotated[int, Meta(ge=32, le=1024)] = 224
    validation_split: Annotated[float, Meta(gt=0, lt=1)] = 0.2
    patience: Annotated[int, Meta(ge=0, le=10_000)] = 10
    """Epochs without a better one after which a run ends, with the best epoch's weights; 0: never."""
    monitor: Literal["val_loss", "val_accuracy", "val_f1", "val_mae", "val_rmse", "val_r2"] = "val_loss"
    seed: Annotated[int, Meta(ge=0, lt=2**31)] = 42


class Column(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of one column of a data set: a line of a part that a prepare job produces."""

    index: int
    name: str
    type: Literal["integer", "numeric", "category", "boolean", "date", "text", "image"]
    role: Literal["feature", "target", "ignored"]
    reason: str = ""
    """Why it is ignored."""
    missing: int = 0
    distinct: int = 0
    minimum: float | str | None = None
    maximum: float | str | None = None
    mean: float | None = None
    deviation: float | None = None
    histogram: list[tuple[float, int]] = []
    """Where each bin begins and how many values are in it; at most 20 bins."""
    categories: list[tuple[str, int]] = []
    """The commonest values and how often each occurs; at most 50."""

"""What a job is asked to do: the typed form of `job.created`'s `inputs` and `spec`, for who writes and who reads them."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """An ingest job whose rows are wanted."""

    job_id: str
    file_id: str = ""


class TrainInputs(msgspec.Struct, frozen=True, kw_only=True):
    """A train job reads the rows of these ingest jobs, waiting for those that still run, less the examples of the project deleted before it."""

    project_id: str
    sources: list[Source]


class FineTune(msgspec.Struct, frozen=True, kw_only=True):
    """How a language model is fine-tuned. Bounds are part of the contract: whoever writes a spec checks them by decoding it."""

    base_model: Annotated[str, Meta(min_length=1, max_length=300)]
    """A Hugging Face id, a folder that the training service can read, or `trainyard/tiny-llama`."""
    revision: str = ""
    """The commit of the hub's repository that was resolved; empty: its newest."""
    method: Literal["lora", "qlora", "full"] = "lora"
    smoke: bool = False
    """The base model is replaced by a tiny random one of the same architecture: all of the path runs, the weights are worthless."""
    num_epochs: Annotated[float, Meta(gt=0, le=100)] = 3.0
    max_steps: Annotated[int, Meta(ge=0, le=10_000_000)] = 0
    """0: as many as the epochs need."""
    learning_rate: Annotated[float, Meta(gt=0, lt=1)] = 2e-4
    lr_scheduler: Literal["cosine", "linear", "constant"] = "cosine"
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


class ExportInputs(msgspec.Struct, frozen=True, kw_only=True):
    """The export job reads the story of a train job that has completed."""

    project_id: str
    training_job_id: str


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

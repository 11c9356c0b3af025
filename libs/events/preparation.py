"""Preparation: raw files become rows that can be trained on. The datasets service is the only writer."""

from .envelope import Claim, Event


class PreparationStarted(Event, frozen=True, kw_only=True, tag="preparation.started"):
    KEY = ("job_id",)
    job_id: str


class PreparationProgressed(Event, frozen=True, kw_only=True, tag="preparation.progress"):
    """How far the work is, in bytes of its input, or in its chunks. Throttled: a reader may miss some but never the end."""

    KEY = ("job_id",)
    job_id: str
    done: int
    total: int
    made: int = 0
    """Of `done`, what whoever tells this did in the latest `seconds` of the work; 0: how fast it goes isn't known."""
    seconds: float = 0.0
    message: str = ""
    """What the work waits for, where it waits."""


class PreparationProduced(Event, frozen=True, kw_only=True, tag="preparation.produced"):
    """One part of the result, at most 1,000 rows or 4 MB, as JSON lines in the object store."""

    KEY = ("job_id",)
    job_id: str
    part: int
    content: Claim
    rows: int
    valid: int
    file_id: str = ""
    """The document that all of its rows were made from, so that they go when it goes; empty: those of the one file that the job reads."""


class PreparationCompleted(Event, frozen=True, kw_only=True, tag="preparation.completed"):
    """The stage is done; every row of the input is in one of `parts`, usable or refused with its reason."""

    KEY = ("job_id",)
    job_id: str
    parts: int
    rows: int
    valid: int
    refused: dict[str, int] = {}
    snapshot: Claim | None = None
    """Of a train job: its rows as JSON lines `{id, split, format, data}`. These bytes and no others are trained on."""
    position: int = 0
    """Edits up to here in the log are in the snapshot."""
    splits: dict[str, int] = {}
    """Usable rows by split, of a snapshot and of generated examples."""
    generator: str = ""
    """Who wrote generated examples: `llm`, `extractive` (the documents' own sentences, no model), or `mixed`."""
    model: str = ""
    """The language model that wrote them."""
    tokenizer: str = ""
    """Whose tokens were counted in chunks: a base model's id, or `estimate`."""
    refused_files: dict[str, str] = {}
    """Documents that no chunks could be made of, by id, each with the code that `refused` counts and `notes` put into words. The first of them."""
    notes: list[str] = []
    """What whoever asked for the work should know of it."""
    contents: str = ""
    """Of a data set, and of a run on one: `table` (the snapshot is one Parquet file with the features and the target) or `image` (it is a ZIP of images and `manifest.jsonl`)."""
    task: str = ""
    """What can be learned of a data set: `classification`, where its target holds names of classes, or `regression`, where it holds numbers."""
    target: str = ""
    columns: int = 0
    """Of the file; a part has a line for each."""
    features: int = 0
    classes: int = 0


class PreparationFailed(Event, frozen=True, kw_only=True, tag="preparation.failed"):
    KEY = ("job_id",)
    job_id: str
    code: str
    message: str


class PreparationCancelled(Event, frozen=True, kw_only=True, tag="preparation.cancelled"):
    KEY = ("job_id",)
    job_id: str

"""Data sets: a table or images that models are fitted to. The gateway is the only writer."""

from .envelope import Event
from .projects import File


class DatasetCreated(Event, frozen=True, kw_only=True, tag="dataset.created"):
    """In one batch with the job that prepares it, which `file` names. What it holds is never changed."""

    KEY = ("dataset_id",)
    FOUNDS = True
    dataset_id: str
    name: str
    description: str = ""
    dataset_type: str = ""
    target: str = ""
    """The column to be predicted, where somebody said so."""
    file: File
    request: str = ""
    """Fingerprint of the request, so that a repeated Idempotency-Key is told from a re-used one."""


class DatasetUsed(Event, frozen=True, kw_only=True, tag="dataset.used"):
    """In one batch with a job that reads it: nobody can delete what it reads without seeing it."""

    KEY = ("dataset_id",)
    dataset_id: str
    job_id: str


class DatasetDeleted(Event, frozen=True, kw_only=True, tag="dataset.deleted"):
    """The data set and its objects are gone; models that were made of it stay, and still say that they were. `job_id` is of the job that prepared it."""

    KEY = ("dataset_id",)
    dataset_id: str
    job_id: str

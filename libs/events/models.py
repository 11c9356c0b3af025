"""Models that people fitted: a name and a place in the list. The gateway is the only writer."""

from .envelope import Event


class ModelRegistered(Event, frozen=True, kw_only=True, tag="model.registered"):
    """A run has made it, and it is known by the run's id. In one batch with the claim of its name."""

    KEY = ("model_id",)
    FOUNDS = True
    model_id: str
    name: str
    model_type: str
    dataset_id: str = ""


class ModelDeleted(Event, frozen=True, kw_only=True, tag="model.deleted"):
    """Its objects are gone; what it was made of can still be told."""

    KEY = ("model_id",)
    model_id: str

"""What can be done to a model that a run has made: it gets a name, and may be deleted."""

from datetime import datetime

import msgspec

from libs.events import Event, ModelDeleted, ModelRegistered, NameClaimed, Recorded
from services.gateway.domain.account import name_id
from services.gateway.domain.errors import NotFound

SCOPE = "model"
"""Of the names: two models of a workspace never have the same."""

SPELT = {"mlp": "MLP", "gradient_boosting": "GradientBoosting", "ft_transformer": "FTTransformer", "vit": "ViT", "convnext": "ConvNeXt"}


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """Known by the id of the run that made it."""

    id: str
    name: str
    model_type: str
    dataset_id: str
    created_at: datetime
    deleted: bool = False


class DeleteModel(msgspec.Struct, frozen=True, kw_only=True):
    model_id: str


Command = DeleteModel


def evolve(model: Model | None, recorded: Recorded) -> Model | None:
    match recorded.event:
        case ModelRegistered() as event:
            return Model(id=event.model_id, name=event.name, model_type=event.model_type, dataset_id=event.dataset_id, created_at=recorded.at)
        case ModelDeleted() if model:
            return msgspec.structs.replace(model, deleted=True)
        case _:
            return model


def decide(model: Model | None, command: Command) -> list[Event]:
    if model is None or model.deleted:
        raise NotFound(what="Model", id=command.model_id)
    return [ModelDeleted(model_id=model.id)]


def named(model_type: str) -> str:
    """`ResNet50` for `resnet50`; of a hub's id what stands behind its owner."""
    return SPELT.get(model_type) or model_type.rpartition("/")[2].replace("resnet", "ResNet")


def founding(tenant: str, *, model_id: str, model_type: str, dataset_id: str, number: int) -> list[Event]:
    """In one batch: of two runs that end at once only one can have the number."""
    name = f"{named(model_type)}_v{number}"
    claimed = NameClaimed(name_id=name_id(f"{SCOPE}/{tenant}", name), scope=SCOPE, holder=model_id)
    return [claimed, ModelRegistered(model_id=model_id, name=name, model_type=model_type, dataset_id=dataset_id)]

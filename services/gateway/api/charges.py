"""Who pays for a start, and how much by the price list."""

from libs.config import Gateway
from services.gateway.api.requests import AnyRequest, caller
from services.gateway.domain.credit import price
from services.gateway.domain.quota import Starter
from services.gateway.domain.user import LOCAL


def starter(request: AnyRequest, settings: Gateway, family: str, *, steps: int = 0, most: int = 0) -> Starter:
    """Whoever asks pays, also for a start in somebody else's workspace. `most`: how many runs he may have at once; 0 is any number."""
    user_id = caller(request).id
    if user_id == LOCAL.id:
        return Starter()
    return Starter(user_id=user_id, price=price(settings.prices, family, steps=steps), most=most, what=f"{family}: training")

"""What does a node cost now, who says so, and how long ago?  Pure but for `aws` and `feed`."""

from berth_operator.prices.hold import plan_priced
from berth_operator.prices.quotes import (
    STATIC,
    Price,
    Priced,
    PricePolicy,
    Quote,
    Quotes,
    age_text,
    complaint,
    in_status,
    own_prices,
    price,
    settled_prices,
)

__all__ = [
    "STATIC",
    "Price",
    "PricePolicy",
    "Priced",
    "Quote",
    "Quotes",
    "age_text",
    "complaint",
    "in_status",
    "own_prices",
    "plan_priced",
    "price",
    "settled_prices",
]

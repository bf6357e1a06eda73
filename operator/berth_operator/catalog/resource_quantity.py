"""How much is a Kubernetes resource quantity such as "500m" or "16Gi"?"""

import re
from typing import Final

_UNITS: Final = {
    None: 1,
    "k": 10**3,
    "M": 10**6,
    "G": 10**9,
    "T": 10**12,
    "Ki": 1 << 10,
    "Mi": 1 << 20,
    "Gi": 1 << 30,
    "Ti": 1 << 40,
}


def cores_of(quantity: str) -> float:
    """Cores: "500m" is 0.5.  The API has checked the form."""
    return float(quantity[:-1]) / 1000 if quantity.endswith("m") else float(quantity)


def bytes_of(quantity: str) -> float:
    """Bytes: "16Gi" is 17179869184.  Raises ValueError for another form."""
    found = re.fullmatch(r"([0-9.]+)(Ki|Mi|Gi|Ti|k|M|G|T)?", quantity)
    if not found:
        raise ValueError(f'{quantity!r} is no amount of memory: write one such as "16Gi"')
    return float(found[1]) * _UNITS[found[2]]

"""A pool with nothing but defaults, of which a test changes what it is about."""

from berth_operator.api import InferencePoolSpec, resolve

BASE = resolve(
    InferencePoolSpec.model_validate(
        {
            "model": {"name": "m", "source": "file:///m"},
            "workload": {"class": "Batch", "demand": {"requestsPerSecond": "1"}},
        }
    )
)
"""One turn/s of class Batch."""

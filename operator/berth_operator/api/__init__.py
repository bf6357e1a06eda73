"""What can a user say, and what do we answer?  The three kinds of `berth.dev/v1alpha1` as plain data.

Everything here is pure: pydantic models, their class defaults, and the CRDs generated from them.
"""

from berth_operator.api.effective import Effective, SpecProblem, resolve, spec_problems
from berth_operator.api.hardware_class import (
    Accelerators,
    Capacity,
    Compute,
    ConstrainedCapacity,
    HardwareClass,
    HardwareClassSpec,
    HardwareClassStatus,
    HardwareKind,
    PriceInForce,
    Runtime,
    RuntimeName,
)
from berth_operator.api.inference_pool import (
    CandidateStatus,
    Decision,
    EndpointPicker,
    InferencePool,
    InferencePoolSpec,
    InferencePoolStatus,
    KedaScaling,
    ParentRef,
    PlacementStatus,
    PoolCost,
    Routing,
)
from berth_operator.api.meta import Condition, ObjectMeta, Toleration
from berth_operator.api.names import GROUP, VERSION
from berth_operator.api.quantities import (
    CapacityType,
    Quantization,
    format_decimal,
    format_duration,
    format_time,
    parse_decimal,
    parse_duration,
)
from berth_operator.api.serving_profile import (
    Provenance,
    ProvenanceMethod,
    ReplicaResources,
    ServingPoint,
    ServingProfile,
    ServingProfileSpec,
)

__all__ = [
    "GROUP",
    "VERSION",
    "Accelerators",
    "CandidateStatus",
    "Capacity",
    "CapacityType",
    "Compute",
    "Condition",
    "ConstrainedCapacity",
    "Decision",
    "Effective",
    "EndpointPicker",
    "HardwareClass",
    "HardwareClassSpec",
    "HardwareClassStatus",
    "HardwareKind",
    "InferencePool",
    "InferencePoolSpec",
    "InferencePoolStatus",
    "KedaScaling",
    "ObjectMeta",
    "ParentRef",
    "PlacementStatus",
    "PoolCost",
    "PriceInForce",
    "Provenance",
    "ProvenanceMethod",
    "Quantization",
    "ReplicaResources",
    "Routing",
    "Runtime",
    "RuntimeName",
    "ServingPoint",
    "ServingProfile",
    "ServingProfileSpec",
    "SpecProblem",
    "Toleration",
    "format_decimal",
    "format_duration",
    "format_time",
    "parse_decimal",
    "parse_duration",
    "resolve",
    "spec_problems",
]

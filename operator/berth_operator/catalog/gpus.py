"""GPUs and other accelerators, by the node that a user gets them in.

Memory is the data sheet's gigabytes in GiB, rounded down.  FLOPs are dense: data sheets like to print sparse ones.
`int8_tops` is the dense FP8 rate where the chip has one, because vLLM serves Int8 pools as FP8.
"""

from decimal import Decimal
from typing import Final

from berth_operator.api import HardwareKind
from berth_operator.catalog.entry import Entry

_GPU, _ACCELERATOR = HardwareKind.GPU, HardwareKind.ACCELERATOR
_NO_IMAGE: Final = "vLLM's default image does not run on it: set runtime.image to the vendor's and take maxNodes 0 away"
_NO_PRICE: Final = "no price is stated for it: set capacity.usdPerHour to what you pay and take maxNodes 0 away"


def _gib(gigabytes: int) -> int:
    return gigabytes * 10**9 >> 30


def _nvidia(
    name: str,
    chip: str,
    instance_type: str,
    usd_per_hour: str,
    *,
    cpus: int,
    count: int = 1,
    gigabytes: int,
    gbps: int,
    bf16: int,
    fp8: int | None = None,
    watts: int,
    what_if: str | None = None,
) -> Entry:
    many = f", {count} to a node" if count > 1 else ""
    return Entry(
        name=name,
        vendor="Nvidia",
        chip=chip,
        kind=_GPU,
        architecture="amd64",
        cpus=cpus,
        memory_gib=_gib(count * gigabytes),
        bandwidth_gbps=count * gbps,
        bf16_tflops=count * bf16,
        int8_tops=None if fp8 is None else count * fp8,
        chip_watts=count * watts,
        accelerators=("nvidia.com/gpu", count),
        instance_type=instance_type,
        usd_per_hour=Decimal(usd_per_hour),
        what_if=what_if,
        source=f"Nvidia {chip} data sheet ({gigabytes} GB, {gbps} GB/s, {bf16} dense TFLOP/s in 16 bits){many};"
        f" AWS {instance_type}.",
    )


ENTRIES: Final = (
    _nvidia(
        *("t4", "T4", "g4dn.xlarge", "0.526"),
        cpus=4,
        gigabytes=16,
        gbps=320,
        bf16=65,
        watts=70,
        what_if="Int8 pools run as fp8 in vLLM, which needs compute capability 8.0, and T4 has 7.5: take maxNodes 0"
        " away only where all its pools are BF16",
    ),
    _nvidia("a10g", "A10G", "g5.xlarge", "1.006", cpus=4, gigabytes=24, gbps=600, bf16=70, watts=300),
    _nvidia("a10g-2xl", "A10G", "g5.2xlarge", "1.212", cpus=8, gigabytes=24, gbps=600, bf16=70, watts=300),
    _nvidia("l4", "L4", "g6.xlarge", "0.805", cpus=4, gigabytes=24, gbps=300, bf16=121, fp8=242, watts=72),
    _nvidia("l40s", "L40S", "g6e.xlarge", "1.861", cpus=4, gigabytes=48, gbps=864, bf16=362, fp8=733, watts=350),
    _nvidia("h100", "H100 SXM", "p5.4xlarge", "6.88", cpus=16, gigabytes=80, gbps=3350, bf16=989, fp8=1979, watts=700),
    _nvidia(
        *("h100-8", "H100 SXM", "p5.48xlarge", "55.04"),
        cpus=192,
        count=8,
        gigabytes=80,
        gbps=3350,
        bf16=989,
        fp8=1979,
        watts=700,
    ),
    _nvidia(
        *("b200-8", "B200", "p6-b200.48xlarge", "113.93"),
        cpus=192,
        count=8,
        gigabytes=180,
        gbps=8000,
        bf16=2250,
        fp8=4500,
        watts=1000,
    ),
    Entry(
        name="inferentia2",
        vendor="AWS",
        chip="Inferentia2",
        kind=_ACCELERATOR,
        architecture="amd64",
        cpus=4,
        memory_gib=_gib(32),
        bandwidth_gbps=820,
        bf16_tflops=190,
        accelerators=("aws.amazon.com/neuroncore", 2),
        instance_type="inf2.xlarge",
        usd_per_hour=Decimal("0.758"),
        source="AWS Inferentia2: one chip of two NeuronCores, 32 GB, 820 GB/s, 190 TFLOP/s bf16; inf2.xlarge.",
        what_if=_NO_IMAGE,
    ),
    Entry(
        name="trainium1",
        vendor="AWS",
        chip="Trainium",
        kind=_ACCELERATOR,
        architecture="amd64",
        cpus=8,
        memory_gib=_gib(32),
        bandwidth_gbps=820,
        bf16_tflops=190,
        accelerators=("aws.amazon.com/neuroncore", 2),
        instance_type="trn1.2xlarge",
        usd_per_hour=Decimal("1.344"),
        source="AWS Trainium: one chip of two NeuronCores, 32 GB, 820 GB/s, 190 TFLOP/s bf16; trn1.2xlarge.",
        what_if=_NO_IMAGE,
    ),
    Entry(
        name="trainium2-16",
        vendor="AWS",
        chip="Trainium2",
        kind=_ACCELERATOR,
        architecture="amd64",
        cpus=192,
        memory_gib=_gib(16 * 96),
        bandwidth_gbps=16 * 2900,
        bf16_tflops=16 * 667,
        accelerators=("aws.amazon.com/neuroncore", 64),
        instance_type="trn2.48xlarge",
        source="AWS Trainium2: 16 chips of 96 GB, 2900 GB/s and 667 TFLOP/s bf16 each; trn2.48xlarge, whose 128"
        " NeuronCores count as 64 logical ones by default.",
        what_if=f"{_NO_IMAGE}; and {_NO_PRICE}",
    ),
    Entry(
        name="tpu-v5p-4",
        vendor="Google",
        chip="TPU v5p",
        kind=_ACCELERATOR,
        architecture="amd64",
        cpus=208,
        memory_gib=_gib(4 * 95),
        bandwidth_gbps=4 * 2765,
        bf16_tflops=4 * 459,
        accelerators=("google.com/tpu", 4),
        instance_type="ct5p-hightpu-4t",
        provider="gcp",
        selector=(
            ("cloud.google.com/gke-tpu-accelerator", "tpu-v5p-slice"),
            ("cloud.google.com/gke-tpu-topology", "2x2x1"),
        ),
        image="vllm/vllm-tpu:latest",
        source="Google TPU v5p: a host of 4 chips of 95 GB, 2765 GB/s and 459 TFLOP/s bf16 each; GKE ct5p-hightpu-4t.",
        what_if=_NO_PRICE,
    ),
    Entry(
        name="mi300x-8",
        vendor="AMD",
        chip="MI300X",
        kind=_GPU,
        architecture="amd64",
        cpus=96,
        memory_gib=_gib(8 * 192),
        bandwidth_gbps=8 * 5300,
        bf16_tflops=8 * 1307,
        chip_watts=8 * 750,
        accelerators=("amd.com/gpu", 8),
        instance_type="Standard_ND96isr_MI300X_v5",
        provider="azure",
        image="rocm/vllm:latest",
        source="AMD Instinct MI300X data sheet: 192 GB, 5300 GB/s, 1307 TFLOP/s bf16; 8 to a node, as Azure rents it.",
        what_if=_NO_PRICE,
    ),
    Entry(
        name="gaudi3-8",
        vendor="Intel",
        chip="Gaudi 3",
        kind=_ACCELERATOR,
        architecture="amd64",
        cpus=160,
        memory_gib=_gib(8 * 128),
        bandwidth_gbps=8 * 3700,
        bf16_tflops=8 * 1835,
        chip_watts=8 * 900,
        accelerators=("habana.ai/gaudi", 8),
        provider="other",
        source="Intel Gaudi 3 white paper: 128 GB, 3700 GB/s, 1835 TFLOP/s in bf16 and fp8; 8 to a node. The host's"
        " 160 vCPUs are an assumption.",
        what_if=f"{_NO_IMAGE}; and {_NO_PRICE}",
    ),
    Entry(
        name="maia-100",
        vendor="Microsoft",
        chip="Maia 100",
        kind=_ACCELERATOR,
        architecture="amd64",
        cpus=1,
        memory_gib=_gib(64),
        bandwidth_gbps=1800,
        bf16_tflops=800,
        chip_watts=500,
        accelerators=("microsoft.com/maia", 1),
        provider="none",
        source="Microsoft's publications on Maia 100: 64 GB, 1800 GB/s, 800 TFLOP/s bf16, 500 W as run (700 by design)."
        " Host and device plugin: not published; one vCPU and microsoft.com/maia stand for them.",
        what_if="not rentable: Microsoft's own use",
        rentable=False,
    ),
    Entry(
        name="mtia-v2",
        vendor="Meta",
        chip="MTIA v2",
        kind=_ACCELERATOR,
        architecture="amd64",
        cpus=1,
        memory_gib=_gib(128),
        bandwidth_gbps=205,
        bf16_tflops=177,
        chip_watts=90,
        accelerators=("meta.com/mtia", 1),
        provider="none",
        source="Meta's publications on MTIA v2: 128 GB of LPDDR5, 205 GB/s, 177 TFLOP/s fp16. Host and device plugin:"
        " not published; one vCPU and meta.com/mtia stand for them.",
        what_if="not rentable: Meta's own use",
        rentable=False,
    ),
)

"""Is the catalogue right?  Against published parameter counts and arithmetic done by hand."""

import pytest
from berth_operator.api import Quantization, RuntimeName
from berth_operator.planner import ARCHITECTURES
from berth_operator.planner.architectures import closest_names

PUBLISHED_PARAMETERS = {  # safetensors totals of the models' repositories
    "smollm2-135m-instruct": 134_515_008,
    "smollm2-360m-instruct": 361_821_120,
    "smollm2-1.7b-instruct": 1_711_376_384,
    "tinyllama-1.1b-chat": 1_100_048_384,
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b-chat": 13_015_864_320,
    "llama-2-70b": 68_976_648_192,
    "llama-3-8b-instruct": 8_030_261_248,
    "llama-3.1-8b-instruct": 8_030_261_248,
    "llama-3.1-405b": 405_853_388_800,
    "llama-3.2-1b-instruct": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "llama-3.3-70b-instruct": 70_553_706_496,
}


@pytest.mark.parametrize(("name", "parameters"), PUBLISHED_PARAMETERS.items())
def test_derived_parameters_equal_the_published_count(name: str, parameters: int) -> None:
    assert ARCHITECTURES[name].parameters == parameters


def test_400_sessions_of_3000_tokens_take_73_gib_of_int8_kv() -> None:
    per_token = ARCHITECTURES["llama-3.1-8b-instruct"].kv_bytes_per_token(RuntimeName.BERTH)
    assert per_token == 65_536
    assert 400 * 3000 * per_token / 2**30 == pytest.approx(73.2, abs=0.1)


def test_vllm_keeps_kv_in_bf16_and_so_twice_the_bytes() -> None:
    for architecture in ARCHITECTURES.values():
        assert architecture.kv_bytes_per_token(RuntimeName.VLLM) == 2 * architecture.kv_bytes_per_token(
            RuntimeName.BERTH
        )


def test_fewer_bits_take_fewer_bytes_on_every_runtime() -> None:
    for architecture in ARCHITECTURES.values():
        for runtime in (RuntimeName.BERTH, RuntimeName.VLLM):
            int4, int8, bf16 = (
                architecture.resident_bytes(q, runtime)
                for q in (Quantization.INT4, Quantization.INT8, Quantization.BF16)
            )
            assert int4 < int8 < bf16
            assert architecture.streamed_bytes(Quantization.INT8, runtime) <= int8


def test_an_embedding_table_of_its_own_is_resident_but_not_streamed() -> None:
    untied, tied = ARCHITECTURES["llama-3.1-8b"], ARCHITECTURES["llama-3.2-1b"]
    bf16, vllm = Quantization.BF16, RuntimeName.VLLM
    assert untied.resident_bytes(bf16, vllm) - untied.streamed_bytes(bf16, vllm) == 2 * untied.vocab * untied.hidden
    assert tied.resident_bytes(bf16, vllm) == tied.streamed_bytes(bf16, vllm)


def test_a_misspelt_name_is_met_with_the_right_one() -> None:
    assert "llama-3.1-8b-instruct" in closest_names("Llama-3.1-8B-Instuct")
    assert closest_names("zzzz") == []

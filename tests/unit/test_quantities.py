"""Are durations and money read exactly, and refused with a remedy?"""

from datetime import timedelta
from decimal import Decimal

import pytest
from berth_operator.api import format_decimal, format_digits, format_duration, parse_decimal, parse_duration
from hypothesis import given
from hypothesis import strategies as st


@given(st.integers(min_value=0, max_value=10**14))
def test_durations_survive_writing_and_reading(microseconds: int) -> None:
    duration = timedelta(microseconds=microseconds)
    assert parse_duration(format_duration(duration)) == duration


@pytest.mark.parametrize(
    ("text", "seconds"), [("850ms", 0.85), ("10m", 600), ("1h30m", 5400), ("1.5s", 1.5), ("0s", 0), ("2h", 7200)]
)
def test_durations_mean_what_they_say(text: str, seconds: float) -> None:
    assert parse_duration(text).total_seconds() == seconds


@pytest.mark.parametrize("text", ["", "10", "-5s", "5 s", "5d", "s", "5S", "1e3s", "٣s", 5, None, True])
def test_what_is_no_duration_is_refused_with_an_example(text: object) -> None:
    with pytest.raises(ValueError, match='write a string such as "850ms"'):
        parse_duration(text)


@given(st.decimals(min_value=0, max_value=10**11, places=6))
def test_decimals_survive_writing_and_reading(value: Decimal) -> None:
    assert parse_decimal(format_decimal(value)) == value


@pytest.mark.parametrize("text", ["", "-1", "1e3", "0x1", "NaN", "inf", ".5", "1,5", "$1", 0.638, 4, None])
def test_what_is_no_decimal_is_refused_with_an_example(text: object) -> None:
    with pytest.raises(ValueError, match=r'in quotes, such as "0\.638"'):
        parse_decimal(text)


@pytest.mark.parametrize("text", ["1234567890123", "0.0000000001"])
def test_a_decimal_of_too_many_digits_is_told_how_many_there_may_be(text: str) -> None:
    with pytest.raises(ValueError, match=r"too many digits: write at most 12 before the point and 9 after it"):
        parse_decimal(text)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *((702_004.3, "702004"), (1000, "1000"), (999.6, "1000"), (17.26, "17.3"), (0.2, "0.2"), (0, "0")),
        *((1e-6, "0.000001"), (0.000_012_345, "0.0000123"), (4.026e8, "402600000")),
    ],
)
def test_a_figure_has_three_digits_that_say_something_and_no_exponent(value: float, text: str) -> None:
    assert format_digits(value) == text


@given(st.text(max_size=20))
def test_any_text_is_read_or_refused_never_worse(text: str) -> None:
    for parse in (parse_duration, parse_decimal):
        try:
            parse(text)
        except ValueError:
            continue

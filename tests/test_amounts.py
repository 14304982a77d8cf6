"""Numbers as people write them: what is read and printed again is the same, and what is not sure is refused."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analytics.amounts import (
    Hardware,
    amount,
    counts_on,
    hardware,
    known_training,
    length,
    seconds,
    usd,
    usd_per,
    written,
)

DAY = 86400.0


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("70b", 70e9),
        ("350m", 350e6),
        ("15T", 15e12),
        ("1,000,000", 1e6),
        ("7e9", 7e9),
        ("1.5k", 1500),
        ("27 300", 27300),
    ],
)
def test_amounts(text: str, value: float) -> None:
    assert amount(text) == pytest.approx(value)


@pytest.mark.parametrize(
    "text",
    ["1,5", "0,216", "0 216", "1_000", "7 km", "0", "-7", "1.234.567", "12,34,567", "7x", "", "B", "nan", "1e99"],
)
def test_no_amounts(text: str) -> None:
    with pytest.raises(ValueError, match=r"no number|a point begins a fraction|cannot be meant"):
        amount(text)


@given(st.integers(1, 10**15))
def test_whole_numbers_are_the_same_however_they_are_grouped(value: int) -> None:
    for text in (str(value), f"{value:,}", f"{value:,}".replace(",", " "), f"{value:,}".replace(",", "'")):
        assert amount(text) == value
    parts = written(f"{value:,}".replace(",", "."))
    assert parts is not None
    assert parts.value(",") == value


@given(st.floats(1e-6, 1e15), st.integers(0, 6))
def test_fractions_are_the_same_in_both_ways_to_write_them(value: float, places: int) -> None:
    text = f"{value:,.{places}f}"
    for decimal, written_text in ((".", text), (",", text.translate(str.maketrans(",.", ".,")))):
        parts = written(written_text)
        assert parts is not None
        assert parts.value(decimal) == float(text.replace(",", ""))
        assert parts.decimal in (decimal, "")
        assert abs(parts.value(decimal) - value) <= parts.rounding(decimal) * (1 + 1e-6) + abs(value) * 1e-15


@given(st.text(alphabet="abcxyzµ%/ ", min_size=1, max_size=6).filter(lambda text: text.strip(" ") not in ("", "b")))
def test_unknown_units_are_refused(unit: str) -> None:
    for read in (amount, usd, length):
        with pytest.raises(ValueError, match="no number"):
            read(f"3 {unit}")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3 weeks", 21 * DAY),
        ("1d12h", 1.5 * DAY),
        ("1d 12h", 1.5 * DAY),
        ("45m", 2700),
        ("90 min", 5400),
        ("1.5 hours", 5400),
    ],
)
def test_times(text: str, value: float) -> None:
    assert seconds(text) == value


@pytest.mark.parametrize(
    "text", ["2 months", "1 year", "12h1d", "1h30", "30", "d", "-3d", "1d1d", "3 fortnights", "1e12w"]
)
def test_no_times(text: str) -> None:
    with pytest.raises(ValueError, match="is no time"):
        seconds(text)


@given(st.tuples(*(st.integers(1, 999) for _ in "dhms")))
def test_times_are_the_sum_of_their_parts(parts: tuple[int, ...]) -> None:
    text = "".join(f"{count}{unit}" for count, unit in zip(parts, "dhms", strict=True))
    assert seconds(text) == sum(count * size for count, size in zip(parts, (DAY, 3600, 60, 1), strict=True))


@pytest.mark.parametrize("text", ["$20k", "20k usd", "20k$", "USD 20,000", "US$20000", "20000 dollars", "2e4"])
def test_money(text: str) -> None:
    assert usd(text) == 20000


@pytest.mark.parametrize(
    ("read", "text", "said"),
    [
        (usd, "€20k", "in USD; convert"),
        (usd, "20k eur", "in USD; convert"),
        (usd, "-3", "no number"),
        (usd, "0", "no number"),
        (usd_per("hour"), "$2/kWh", "USD per hour"),
        (usd_per("kWh"), "$2/h", "USD per kWh"),
        (usd_per("hour"), "$2/month", "USD per hour"),
        (length, "4k", "may be 4,000 or 4,096"),
        (hardware, "0xH100", "1 to 1,000,000 devices"),
        (known_training, "hours=3,params=1,5", "no number|a point"),
    ],
)
def test_what_is_not_sure_is_refused(read: Callable[[str], object], text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        read(text)


def test_prices() -> None:
    assert usd_per("hour")("$2.10/GPU-hour") == usd_per("hour")("2.1 usd/h") == usd_per("kWh")("2.10 $/kWh") == 2.1
    assert usd_per("hour")("0") == 0
    assert known_training("hours=3,000,params=340m") == {"hours": 3000, "params": 340e6}


@pytest.mark.parametrize(
    ("text", "devices"),
    [
        ("8xH100", Hardware(8, None, "H100")),
        ("8 x NVIDIA H100 80GB HBM3", Hardware(8, None, "NVIDIA H100 80GB HBM3")),
        ("2x8 H100", Hardware(16, 2, "H100")),
        ("2 nodes x 8 H100", Hardware(16, 2, "H100")),
        ("1 node x 8", Hardware(8, 1, "")),
        ("16 GPUs", Hardware(16, None, "")),
        ("8 H100 GPUs", Hardware(8, None, "H100")),
        ("H100x8", Hardware(8, None, "H100")),
        ("A100 × 4", Hardware(4, None, "A100")),
        *((text, None) for text in ("H100", "RTX4090", "32k", "12.5", "1 node", "8,5", "A100X 8")),
    ],
)
def test_hardware(text: str, devices: Hardware | None) -> None:
    assert hardware(text) == devices


def test_numbers_of_devices_may_have_a_name() -> None:
    assert counts_on("8xH100-SXM") == ((8,), "H100-SXM")
    assert counts_on("8,16") == ((8, 16), "")
    with pytest.raises(ValueError, match="whole numbers"):
        counts_on("8xH100,16xH100")

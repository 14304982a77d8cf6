"""Places as people name them have the carbon intensity of their grid, with source and unit; what is not sure is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.figures.regions import intensity, own_factor, region_name
from bench.record import Provenance
from tests.commands import bench


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("FR", "FRA"),
        ("fra", "FRA"),
        ("France", "FRA"),
        ("UK", "GBR"),
        ("United Kingdom", "GBR"),
        ("US-CA", "US-CA"),
        ("California", "US-CA"),
        ("CA", "CAN"),
        ("CA-QC", "CA-QC"),
        ("Québec", "CA-QC"),
        ("Beijing", "CN-BJ"),
        ("SE3", "SE3"),
        ("us-west-2", "US-OR"),
        ("eastus", "US-VA"),
        ("ca-central-1", "CA-QC"),
        ("europe-west4", "europe-west4"),
    ],
)
def test_names_of_places(text: str, code: str) -> None:
    assert intensity(text).region == code


def test_sources_and_units() -> None:
    assert intensity("europe-west4").kg_per_kwh == 0.236
    assert "Google Cloud" in intensity("europe-west4").source
    assert intensity("us-west-2").kg_per_kwh == intensity("US-OR").kg_per_kwh
    assert "AWS us-west-2" in intensity("us-west-2").source
    assert (intensity("CN-BJ").kg_per_kwh, intensity("CN-BJ").unit) == (0.5554, "CO2")
    assert region_name("CN-BJ").endswith("(CO2 alone)")
    assert (intensity("SE3").kg_per_kwh, intensity("SE3").unit) == (0.027, "CO2e")
    ontario = (8.6 * 743 + 50.1 * 29 + 0.1 * 816 + 1.0 * 230 + 5.2 * 48 + 11.7 * 26 + 23.4 * 26) / 100.1
    assert intensity("Ontario").kg_per_kwh == pytest.approx(ontario / 1000)
    assert intensity("Ontario").unit == "CO2e"
    assert region_name("FRA") == "France"
    assert region_name("30 g/kWh") == "30 g/kWh"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Georgia", "may be GEO or US-GA: say which"),
        ("Calfornia", "did you mean california"),
        ("uswest2", "us-west-2"),
        ("Korea", "may be KOR or PRK"),
        ("EU", "not known"),
        ("QC", "not known"),
        ("", "not known"),
        ("AQ", "give --carbon-intensity"),
    ],
)
def test_what_is_not_sure_is_refused(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        intensity(text)


@given(st.integers(0, 3000))
def test_an_own_factor_is_what_was_given(grams: int) -> None:
    for text in (f"{grams}g", f"{grams / 1000}kg", f"{grams} gCO2e/kWh"):
        factor = intensity(own_factor(text))
        assert factor.kg_per_kwh == pytest.approx(grams / 1000)
        assert (factor.source, factor.unit, factor.region) == (Provenance.USER_SUPPLIED, "CO2e", f"{grams} g/kWh")


@pytest.mark.parametrize("text", ["30", "30 t", "5kg", "-3g", "g", "30 lb", "nan g"])
def test_no_factors(text: str) -> None:
    with pytest.raises(ValueError, match="is no carbon intensity"):
        own_factor(text)


def test_a_plan_says_whose_factor_it_takes() -> None:
    asked = ("plan", "--params", "70b", "--tokens", "15T", "--devices", "8xH100-SXM", "--priors")
    own = bench(*asked, "--carbon-intensity", "30g", "--price", "$2.10/h")
    assert own.exit_code == 0, own.output
    assert "30 g/kWh" in own.stdout
    assert "2.10 USD/device-hour" in own.stdout
    assert "Oregon" in bench(*asked, "--region", "us-west-2").stdout

"""Tables for other programs: formulas are defused, and everything can be read back as it was."""

import io

import numpy as np
import pandas as pd

from analytics.runs.export import defused, to_csv
from analytics.runs.frame import frame
from tests import rows

EVIL = ["=1+1", "+1", "-1", "@x", "\tx", "\rx", "\nx", "＝1", "'=1", "''@x"]


def test_no_cell_is_a_formula() -> None:
    given = pd.DataFrame({"text": ["=1+1", "+1", "-1", "@x", "\tx", "fine", None], "number": [-1.0] * 7})
    plain = defused(given)
    assert plain["text"].tolist()[:6] == ["'=1+1", "'+1", "'-1", "'@x", "'\tx", "fine"]
    assert plain["text"].isna().tolist()[-1]
    assert plain["number"].tolist() == [-1.0] * 7
    assert given["text"][0] == "=1+1", "the frame itself is left alone"


def test_what_was_defused_can_be_told() -> None:
    given = pd.DataFrame({"text": [*EVIL, "'fine", "fine", "a=b"], "=name": ["x"] * (len(EVIL) + 3)}, dtype="str")
    plain = defused(given)
    assert list(plain.columns) == ["text", "'=name"]
    assert all(cell.startswith("'") for cell in plain["text"][: len(EVIL)])
    assert plain["text"].tolist()[-3:] == ["'fine", "fine", "a=b"]
    pd.testing.assert_frame_equal(rows.restored(plain), given)


def test_a_csv_is_read_back_as_it_was() -> None:
    given = [rows.make(d, repeat=r, cpu=evil) for d in (1, 2) for r, evil in enumerate([*EVIL, rows.HOSTILE_FORMULA])]
    given[0]["workload_args.=cmd"] = '+1, "quoted"\nand more'
    df = frame(given)
    text = to_csv(df)
    assert not any(cell.startswith(("=", "+", "@", "\t")) for line in text.split("\r\n") for cell in line.split(","))
    back = rows.restored(pd.read_csv(io.StringIO(text), dtype="str", keep_default_na=False))
    assert list(back.columns) == list(df.columns)
    assert back["device_name"].tolist() == df["device_name"].tolist()
    assert back["workload_args.=cmd"].tolist() == df["workload_args.=cmd"].fillna("").tolist()
    for name in ("devices", "samples_per_second", "joules_per_sample", "cost_usd"):
        np.testing.assert_array_equal(back[name].astype(float), df[name].astype(float))
    assert pd.to_datetime(back["started_at"]).tolist() == df["started_at"].tolist()

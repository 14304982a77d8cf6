"""The pages in Streamlit's own test harness, and what they show."""

import re
from collections.abc import Callable
from html import unescape
from pathlib import Path

from streamlit.testing.v1 import AppTest
from streamlit.util import calc_hash

from app import data, serve
from tests import rows

MAIN = Path(serve.__file__).parent / "pages" / "main.py"
EVIL = (rows.HOSTILE, rows.HOSTILE_LINK, rows.HOSTILE_FORMULA)
Open = Callable[..., AppTest]


def opened(name: str, query: dict[str, str], *, fresh: bool = True) -> AppTest:
    """Open a page, with nothing cached unless it is not to be `fresh`; what it raises fails the test."""
    if fresh:
        data.forget()
    app = AppTest.from_file(str(MAIN), default_timeout=30)
    app._page_hash = calc_hash(name)  # `switch_page` knows pages that are files only
    for key, value in query.items():
        app.query_params[key] = value
    app.run()
    assert not app.exception, app.exception
    return app


def texts(app: AppTest) -> str:
    return "\n".join([*answers(app), *(e.value for kind in (app.text, app.caption, app.subheader) for e in kind)])


def answers(app: AppTest) -> list[str]:
    """What stands in large type, without its markup."""
    bodies = (element.proto.body for element in app.get("html"))
    return [unescape(body.partition(">")[2].removesuffix("</p>")) for body in bodies if body.startswith("<p ")]


def markup(app: AppTest) -> str:
    """All that Streamlit renders as Markdown, and the tags of HTML."""
    kinds = (app.markdown, app.caption, app.title, app.subheader, app.header, app.error, app.info, app.warning)
    parts = [str(element.value) for kind in kinds for element in kind]
    parts += [tag for element in app.get("html") for tag in re.findall(r"<[^>]*>", element.proto.body)]
    return "\n".join([*parts, *(f"{tile.label} {tile.value} {tile.delta}" for tile in app.metric)])

"""The pages in Streamlit's own test harness, and what they show."""

from collections.abc import Callable
from pathlib import Path

from streamlit.testing.v1 import AppTest

from app import data, serve
from tests import rows

MAIN = Path(serve.__file__).with_name("main.py")
EVIL = (rows.HOSTILE, rows.HOSTILE_LINK, rows.HOSTILE_FORMULA)
Open = Callable[..., AppTest]


def opened(name: str, query: dict[str, str]) -> AppTest:
    """Open a page anew, with nothing cached; what it raises fails the test."""
    data.forget()
    data.PATIENCE = 60.0  # tests see pages when all is read
    app = AppTest.from_file(str(MAIN), default_timeout=30)
    app.switch_page(f"views/{name}.py")
    for key, value in query.items():
        app.query_params[key] = value
    app.run()
    assert not app.exception, app.exception
    return app


def texts(app: AppTest) -> str:
    return "\n".join(element.value for kind in (app.text, app.caption, app.subheader) for element in kind)


def markup(app: AppTest) -> str:
    """All that Streamlit renders as Markdown."""
    kinds = (app.markdown, app.caption, app.title, app.subheader, app.header, app.error, app.info, app.warning)
    parts = [str(element.value) for kind in kinds for element in kind]
    return "\n".join([*parts, *(f"{tile.label} {tile.value} {tile.delta}" for tile in app.metric)])

"""Real runs for tests: suites `scaling` (its smallest model), `ladder` and `batches` (some out of memory), and a search.

`recorded_store(folder)` makes a store of them. `python -m tests.recorded RUNS...` makes the archive anew from folders of runs
that have these suites; names of hosts, users and folders are taken out.
"""

import io
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

from analytics.runs.share import cleaner, scrubbed
from bench.record import RunRecord
from bench.store.sync import sync
from tests.stores import empty_store

ARCHIVE = Path(__file__).parent / "data" / "recorded" / "runs.tar.xz"
CHOSEN = ("scaling/*/*-tiny-*", "ladder/*/*-r[01]", "batches/*/*-r0")
SEARCHES = "search-cost-efficiency/*/search.json"


def recorded_store(folder: Path) -> str:
    """Unpack the runs to `folder`/runs, log them to a store beside it, and return its URI."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder / "runs", filter="data")
    uri = empty_store(folder)
    _, unreadable = sync(folder / "runs", uri)
    assert unreadable == []
    return uri


def _files(folders: list[Path]) -> Iterator[tuple[str, bytes]]:
    found = [path for runs in folders for chosen in CHOSEN for path in sorted(runs.glob(chosen))]
    records = [RunRecord.model_validate_json((path / "record.json").read_text()) for path in found]
    clean = cleaner(records)
    for path, old, new in zip(found, records, scrubbed(records, clean), strict=True):
        if old.error is not None and new.error is not None:
            error = new.error.model_copy(update={"log_tail": clean(old.error.log_tail)})
            new = new.model_copy(update={"error": error})
        place = "/".join(path.parts[-3:-1])
        yield f"{place}/{new.run_id}/record.json", new.model_dump_json(indent=1).encode()
        for file in sorted([*path.glob("steps-*.jsonl"), *path.glob("meters-*.parquet"), path / "worker.log"]):
            text = file.suffix in (".jsonl", ".log")
            yield (
                f"{place}/{new.run_id}/{file.name}",
                clean(file.read_text()).encode() if text else file.read_bytes(),
            )
    for runs in folders:
        for path in sorted(runs.glob(SEARCHES)):
            yield "/".join(path.parts[-3:]), clean(path.read_text()).encode()


def main() -> None:
    """Make the archive anew."""
    with tarfile.open(ARCHIVE, "w:xz", preset=9) as archive:
        for name, data in _files([Path(text) for text in sys.argv[1:]]):
            about = tarfile.TarInfo(name)
            about.size = len(data)
            archive.addfile(about, io.BytesIO(data))


if __name__ == "__main__":
    main()

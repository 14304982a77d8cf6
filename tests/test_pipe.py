"""Messages between two processes: whole, in order, and the end is noticed."""

import os
from collections.abc import Iterator

import pytest

from bench.pipe import Pipe


@pytest.fixture
def ends() -> Iterator[tuple[Pipe, Pipe]]:
    (a, b), (c, d) = os.pipe(), os.pipe()
    pair = Pipe(a, d), Pipe(c, b)
    yield pair
    for pipe in pair:
        pipe.close()


def test_messages_arrive_whole_and_in_order(ends: tuple[Pipe, Pipe]) -> None:
    here, there = ends
    path = os.fsdecode(b"/tmp/\xff new\nline")
    assert here.send(run=path)
    assert here.send(cancel=True, steps=[1, None])
    assert not there.pending
    assert there.receive() == {"run": path}
    assert there.pending  # the descriptor does not show the second one any more
    assert there.receive(0) == {"cancel": True, "steps": [1, None]}
    assert (there.receive(0), there.pending) == (None, False)


def test_a_message_in_pieces_is_awaited(ends: tuple[Pipe, Pipe]) -> None:
    here, there = ends
    os.write(here._writer, b'{"run": ')
    assert there.receive(0.01) is None
    os.write(here._writer, b'"x"}\n{')
    assert there.receive() == {"run": "x"}
    assert there.receive(0) is None


def test_the_end_of_the_other_side_is_noticed(ends: tuple[Pipe, Pipe]) -> None:
    here, there = ends
    here.send(last=1)
    here.close()
    assert there.receive() == {"last": 1}
    with pytest.raises(EOFError):
        there.receive()
    assert not there.send(done=True)
    here.close()  # once more does no harm


@pytest.mark.parametrize("line", [b"[1]\n", b"no json\n", b"\n"])
def test_a_line_that_is_no_message_is_an_error(ends: tuple[Pipe, Pipe], line: bytes) -> None:
    here, there = ends
    os.write(here._writer, line)
    with pytest.raises(ValueError):  # noqa: PT011  of json, or ours
        there.receive()

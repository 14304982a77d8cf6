"""Nodes that are forked from a process that has imported torch already; by itself each node would import for seconds.

The launcher takes such a node for the process that it has started. Everything else of an execution is as it always is.
"""

import contextlib
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest import mock

from bench.process import module_command
from bench.run import launcher
from tests.processes import PATIENCE

_NURSERY = multiprocessing.get_context("forkserver")
_NURSERY.set_forkserver_preload(
    [
        "torch.distributed.elastic.multiprocessing",
        "transformers.models.gpt2.modeling_gpt2",
        "transformers.models.llama.modeling_llama",
        "bench.train.worker",
        "bench.run.node",
    ]
)


def call(function: Callable[..., None], *arguments: Any) -> int | None:
    """Call a function of a module in a process that has imported torch; return its exit code, None if it had to be killed."""
    process = _NURSERY.Process(target=function, args=arguments)
    with contextlib.chdir("/"):  # where the nursery stays
        process.start()
    process.join(PATIENCE)
    exitcode = process.exitcode
    process.kill()
    return exitcode


class Node:
    """What the launcher asks of `subprocess.Popen`."""

    def __init__(self, command: list[str], *, cwd: Path, env: dict[str, str], stderr: Any, **_: Any) -> None:
        stdin, self.stdin = _NURSERY.Pipe(duplex=False)
        self.stdout, stdout = _NURSERY.Pipe(duplex=False)
        self._process = _NURSERY.Process(target=_node, args=(command, str(cwd), dict(env), stdin, stdout, stderr.name))
        with contextlib.chdir("/"):  # where the nursery stays
            self._process.start()
        stdin.close()
        stdout.close()

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> None:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("node", timeout or 0)

    def kill(self) -> None:
        self._process.kill()


def _node(
    command: list[str], folder: str, environment: dict[str, str], stdin: Connection, stdout: Connection, log: str
) -> None:
    os.setsid()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    with Path(log).open("ab") as file:
        for new, old in ((stdin.fileno(), 0), (stdout.fileno(), 1), (file.fileno(), 2)):
            os.dup2(new, old)
    stdin.close()
    stdout.close()
    assert command[:4] == module_command("bench.run.node")
    sys.argv = command[3:]
    from bench.run import node

    node.main()


@contextlib.contextmanager
def nodes() -> Iterator[None]:
    """Let the executions of this process have such nodes."""
    warm = mock.Mock(Popen=Node, PIPE=subprocess.PIPE, TimeoutExpired=subprocess.TimeoutExpired)
    with mock.patch.object(launcher, "subprocess", warm):
        yield

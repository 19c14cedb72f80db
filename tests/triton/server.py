"""Real Triton servers for tests, started by the script that users start them with."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]
SERVE = CHECKOUT / "deploy" / "triton" / "serve"
ENVIRONMENT = CHECKOUT / ".triton"
READY_S = 60.0
"""Maximum time until a server is ready (s); measured 1 s to 3 s."""
END_S = 15.0
"""Maximum time until a server has ended after a signal (s)."""


@dataclass(frozen=True)
class Addresses:
    """A running server."""

    http: str
    """Host and port, such as `127.0.0.1:8000`."""
    grpc: str
    metrics: str
    process: "subprocess.Popen[bytes]"
    log: Path

    def metric(self, name: str, **labels: str) -> float:
        """Return the sum of a metric over all lines that have the given labels."""
        with urllib.request.urlopen(f"http://{self.metrics}/metrics", timeout=10) as answer:
            lines = [line for line in answer.read().decode().splitlines() if line.startswith(f"{name}{{")]
        wanted = [f'{label}="{value}"' for label, value in labels.items()]
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if all(one in line for one in wanted))


def why_not() -> str:
    """Return why no server can run here, for a skipped test; empty if one can."""
    command = [sys.executable, SERVE, "--check", "--environment", ENVIRONMENT]
    found = subprocess.run(command, check=False, stderr=subprocess.PIPE, text=True)
    return found.stderr.strip()


@contextmanager
def serving(repository: Path, environment: Path = ENVIRONMENT) -> Iterator[Addresses]:
    """Serve a model repository on free ports of the loopback interface until the block ends.

    Raises:
        AssertionError: the server did not become ready; the message holds its log.
    """
    with ExitStack() as stack:
        log = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "server.log"
        http, grpc, metrics = (f"127.0.0.1:{port}" for port in free_ports(3))
        ports = [f"--{name}-port={address.rsplit(':')[-1]}" for name, address in
                 (("http", http), ("grpc", grpc), ("metrics", metrics))]  # fmt: skip
        command = [sys.executable, SERVE, repository, "--environment", environment, *ports]
        with log.open("wb") as output:
            process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
        stack.callback(kill, process)
        addresses = Addresses(http, grpc, metrics, process, log)
        try:
            wait_until_ready(addresses)
            yield addresses
        except BaseException as error:
            error.add_note(f"log of the server:\n{log.read_text()[-8000:]}")
            raise


def free_ports(count: int) -> list[int]:
    """Return ports that are free now, all different."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def wait_until_ready(addresses: Addresses) -> None:
    until = time.monotonic() + READY_S
    while time.monotonic() < until:
        code = addresses.process.poll()
        assert code is None, f"the server ended with code {code}"
        with (
            suppress(OSError, urllib.error.URLError),
            urllib.request.urlopen(f"http://{addresses.http}/v2/health/ready", timeout=5),
        ):
            return
        time.sleep(0.05)
    raise AssertionError(f"the server was not ready within {READY_S:.0f} s")


def kill(process: "subprocess.Popen[bytes]") -> None:
    """End a server and the processes of its models at once; a server that has ended is left alone."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(END_S)

"""Checks of arguments and of the models that servers describe."""

import re
import threading
from collections.abc import Iterable
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from e3d_deploy.errors import BundleError, ConfigError

if TYPE_CHECKING:
    from e3d_deploy.fleet.messages import ServedModel

ADDRESS = re.compile(r"(\[[0-9a-f:.]+\]|[^\s:/@\[\]]+):(\d{1,5})")
"""Host name, IPv4 address or IPv6 address in brackets, and a port."""
MAX_PORT = 65_535


def check_hosts(hosts: Any) -> tuple[str, ...]:
    """Return host addresses in lower case.

    Raises:
        ConfigError: `hosts` is empty or not a list of texts, an address has no valid port, or a host is listed twice.
    """
    example = "expected a list such as ['10.0.0.1:8001', '10.0.0.2:8001']"
    if isinstance(hosts, str | bytes) or not isinstance(hosts, Iterable):
        raise ConfigError(f"hosts: got {hosts!r}, {example}")
    checked = tuple(_check_host(host) for host in hosts)
    if not checked:
        raise ConfigError(f"hosts: got an empty list, {example}; give at least one Triton server")
    if repeated := sorted({host for host in checked if checked.count(host) > 1}):
        raise ConfigError(f"hosts: {', '.join(repeated)} is listed more than once; list each server once")
    return checked


def _check_host(host: Any) -> str:
    found = ADDRESS.fullmatch(host.lower()) if isinstance(host, str) else None
    if found is None or not 0 < int(found[2]) <= MAX_PORT:
        raise ConfigError(
            f"hosts: got {host!r}, expected HOST:PORT such as '10.0.0.1:8001', with the gRPC port, by default 8001"
        )
    return found[0]


def check_timeout(value: Any) -> float:
    """Return a time limit (s) as a float.

    Raises:
        ConfigError: `value` is not a positive number that the system can wait for.
    """
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= threading.TIMEOUT_MAX:
        return float(value)
    raise ConfigError(f"timeout_s: got {value!r}, expected a positive number of seconds, such as 10")


def check_same(host: str, served: "ServedModel", other: str, expected: "ServedModel") -> None:
    """Check that a host serves the same model as another one, or as the fleet.

    Raises:
        BundleError: the models differ, so that forecasts would change when a stream moves.
    """
    for field in fields(served):
        got, wanted = getattr(served, field.name), getattr(expected, field.name)
        if got != wanted:
            raise BundleError(
                f"{host}: serves {field.name} {got}, but {other} serves {field.name} {wanted}; serve one bundle on all "
                "hosts of a fleet, then open the fleet again"
            )

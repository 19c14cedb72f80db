"""Choice of the host of a stream."""

import random
from collections import Counter

import pytest

from e3d_deploy.errors import ConfigError
from e3d_deploy.fleet.checks import check_hosts
from e3d_deploy.fleet.hashing import ranking, weight

HOSTS = [f"10.0.0.{number}:8001" for number in range(1, 6)]
STREAMS = [f"camera-{number}" for number in range(2000)]


def first(hosts: list[str]) -> dict[str, str]:
    return {stream: ranking(stream, hosts)[0] for stream in STREAMS}


def test_clients_of_all_versions_agree_on_the_host() -> None:
    """The weight is the output of `printf '10.0.0.1:8001\\0camera-7' | sha256sum | cut -c1-16`."""
    assert weight("camera-7", "10.0.0.1:8001") == 0x0F76434F16B4F36D
    assert ranking("camera-7", HOSTS[:3]) == ["10.0.0.3:8001", "10.0.0.2:8001", "10.0.0.1:8001"]
    assert ranking("Kamera Süd", HOSTS[:3]) == ["10.0.0.1:8001", "10.0.0.2:8001", "10.0.0.3:8001"]


def test_the_ranking_does_not_depend_on_the_order_of_the_list() -> None:
    shuffled = random.Random(0).sample(HOSTS, len(HOSTS))
    assert all(ranking(stream, shuffled) == ranking(stream, HOSTS) for stream in STREAMS)


def test_streams_are_spread_evenly() -> None:
    """With 2,000 streams on 5 hosts, the standard deviation of the share of a host is 18 streams."""
    counts = Counter(first(HOSTS).values())
    assert set(counts) == set(HOSTS)
    assert all(abs(count - 400) < 90 for count in counts.values())


def test_removing_a_host_moves_only_its_streams_and_spreads_them() -> None:
    before, after = first(HOSTS), first(HOSTS[:-1])
    moved = {stream for stream in STREAMS if before[stream] != after[stream]}
    assert moved == {stream for stream in STREAMS if before[stream] == HOSTS[-1]}
    assert {after[stream] for stream in moved} == set(HOSTS[:-1])


def test_adding_a_host_moves_streams_only_to_it() -> None:
    added = "10.0.0.9:8001"
    before, after = first(HOSTS), first([*HOSTS, added])
    moved = {stream for stream in STREAMS if before[stream] != after[stream]}
    assert {after[stream] for stream in moved} == {added}
    assert 250 < len(moved) < 420  # a sixth of 2,000 is 333


def test_the_next_host_of_a_stream_is_that_without_its_first() -> None:
    for stream in STREAMS[:50]:
        head, *rest = ranking(stream, HOSTS)
        assert rest == ranking(stream, [host for host in HOSTS if host != head])


def test_addresses_are_names_or_numbers_with_a_port() -> None:
    assert check_hosts(("Triton-0.triton:8001", "10.0.0.2:8001", "[::1]:8001")) == (
        "triton-0.triton:8001",
        "10.0.0.2:8001",
        "[::1]:8001",
    )


@pytest.mark.parametrize(
    ("hosts", "text"),
    [
        ([], "got an empty list, expected a list such as"),
        ("10.0.0.1:8001", "got '10.0.0.1:8001', expected a list such as"),
        (None, "got None, expected a list such as"),
        ([7], "got 7, expected HOST:PORT"),
        (["10.0.0.1"], "got '10.0.0.1', expected HOST:PORT such as '10.0.0.1:8001', with the gRPC port"),
        (["http://10.0.0.1:8000"], "expected HOST:PORT"),
        (["::1:8001"], "expected HOST:PORT"),
        (["a:0"], "expected HOST:PORT"),
        (["a:65536"], "expected HOST:PORT"),
        (["a:8001 "], "expected HOST:PORT"),
        (["a:8001", "b:8001", "A:8001"], "a:8001 is listed more than once; list each server once"),
    ],
)
def test_an_invalid_list_is_refused(hosts: object, text: str) -> None:
    with pytest.raises(ConfigError) as error:
        check_hosts(hosts)
    assert str(error.value).startswith("hosts: ")
    assert text in str(error.value)

"""Faults of servers, each with one clear error or a move to another host."""

import pytest

from e3d_deploy.errors import BundleError, ConfigError, ServerLost, StreamError
from e3d_deploy.fleet import Fleet
from tests.fleet.conftest import Servers
from tests.fleet.test_stream import level
from tests.triton.server import free_ports


def test_a_slow_host_is_lost_after_the_time_limit(servers: Servers) -> None:
    with servers.fleet(timeout_s=0.3) as fleet:
        stream = fleet.stream("camera-7")
        level(stream, 1)
        slow = servers.at(stream.host)
        slow.delay_s = 1.0
        assert level(stream, 2) == 3
        assert stream.host == servers.other(slow.address).address
        assert fleet.is_avoided(slow.address)
        slow.wait_until_left()  # its late answer is in no queue that is read
        assert level(stream, 3) == 6


def test_if_all_hosts_are_slow_the_error_names_the_time_limit(servers: Servers) -> None:
    with servers.fleet(timeout_s=0.3) as fleet:
        stream = fleet.stream("camera-7")
        for one in servers.all:
            one.delay_s = 1.0
        with pytest.raises(ServerLost) as error:
            level(stream, 1)
    assert str(error.value).count("no answer within 0.3 s") == 2


def test_a_server_without_the_model_is_skipped_and_named_if_it_is_the_only_one(servers: Servers) -> None:
    servers.all[0].has_model = False
    with servers.fleet() as fleet:
        stream = fleet.stream("camera-7")
        level(stream, 1)
        assert stream.host == servers.all[1].address
        with pytest.raises(ServerLost, match="Request for unknown model: 'kth' is not found"):
            Fleet([servers.all[0].address], "kth")


def test_a_model_that_is_not_ready_any_more_counts_as_lost(servers: Servers) -> None:
    with servers.fleet() as fleet:
        stream = fleet.stream("camera-7")
        level(stream, 1)
        ending = servers.at(stream.host)
        ending.is_ready, ending.refusal = False, "Server is stopping"
        assert level(stream, 2) == 3
        assert stream.host == servers.other(ending.address).address


@pytest.mark.parametrize(
    "answer",
    ["Stub process 'kth_0_0' is not healthy.", "Failed to process the request(s) for model 'kth_0_0', message: …"],
)
def test_a_stream_leaves_a_server_whose_model_has_crashed(servers: Servers, answer: str) -> None:
    with servers.fleet() as fleet:
        stream = fleet.stream("camera-7")
        level(stream, 1)
        crashed = servers.at(stream.host)
        crashed.refusal = answer  # the server stays ready
        assert level(stream, 2) == 3
        assert stream.host == servers.other(crashed.address).address


def test_a_stream_leaves_a_server_that_is_about_to_end_and_ends_its_sequence_there(
    servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("e3d_deploy.fleet.connection.READY_S", 0.0)
    with servers.fleet() as fleet:
        stream = fleet.stream("camera-7")
        level(stream, 1)
        ending = servers.at(stream.host)
        ending.is_ready = False
        assert level(stream, 2) == 3
        assert stream.host == servers.other(ending.address).address
        assert ending.states == {}


def test_an_error_of_the_model_is_raised_and_the_next_picture_restarts_the_stream(servers: Servers) -> None:
    with servers.fleet() as fleet:
        stream = fleet.stream("camera-7")
        for value in (1, 2, 3):
            level(stream, value)
        server = servers.at(stream.host)
        server.refusal = "the prediction is not finite"
        with pytest.raises(StreamError) as error:
            level(stream, 100)
        assert str(error.value) == f"{server.address}: the server refused the picture (the prediction is not finite)"
        assert server.states == {}  # otherwise a caller that tries again and again would use up the server's streams
        server.refusal = ""
        assert level(stream, 4) == 2 + 3 + 4
        assert (stream.host, stream.restarts, stream.pushed) == (server.address, 1, 4)


def test_a_model_of_another_version_is_refused(servers: Servers) -> None:
    for one in servers.all:
        one.parameters["e3d_contract"] = "2"
    with pytest.raises(BundleError, match="model 'kth' has e3d_contract 2, this client needs 1; write its repository"):
        servers.fleet()


def test_a_model_of_another_flavour_is_refused_with_the_flavour_that_is_needed(servers: Servers) -> None:
    """`e3d pack` gives the other flavours no version of the contract."""
    for one in servers.all:
        one.parameters.pop("e3d_contract")
    with pytest.raises(BundleError, match="model 'kth' has no parameter e3d_contract, expected a model of the flavour"):
        servers.fleet()


def test_a_host_that_comes_back_with_another_version_is_refused_and_not_skipped(servers: Servers) -> None:
    with servers.fleet() as fleet:
        stream = fleet.stream("camera-7")
        level(stream, 1)
        other = servers.other(stream.host)
        other.parameters["e3d_contract"] = "2"
        servers.stop[stream.host or ""]()
        with pytest.raises(BundleError, match=f"{other.address}: model 'kth' has e3d_contract 2"):
            level(stream, 2)
        assert other.requests == []


def test_hosts_with_different_bundles_are_refused_at_the_start(servers: Servers) -> None:
    servers.all[1].parameters["e3d_bundle"] = "bbbb"
    with pytest.raises(BundleError) as error:
        servers.fleet()
    first, second = (one.address for one in servers.all)
    assert str(error.value).startswith(f"{second}: serves bundle bbbb, but {first} serves bundle aaaa")


@pytest.mark.parametrize(("name", "value"), [("e3d_bundle", "bbbb"), ("e3d_renewal", "refresh:2")])
def test_a_stream_does_not_move_to_a_host_that_would_forecast_differently(
    servers: Servers, name: str, value: str
) -> None:
    with servers.fleet() as fleet:
        stream = fleet.stream("camera-7")
        level(stream, 1)
        other = servers.other(stream.host)
        other.parameters[name] = value
        servers.stop[stream.host or ""]()
        with pytest.raises(BundleError, match=f"{other.address}: serves .*{value}"):
            level(stream, 2)
        assert other.requests == []


def test_an_answer_to_another_request_is_never_returned(servers: Servers) -> None:
    with servers.fleet() as fleet:
        stream = fleet.stream("camera-7")
        level(stream, 1)
        servers.at(stream.host).answer_id = lambda number: str(int(number) - 1)
        with pytest.raises(StreamError, match="the answer to request 1 has id '0'"):
            level(stream, 2)


def test_an_answer_of_an_unexpected_shape_is_never_returned(servers: Servers) -> None:
    with servers.fleet() as fleet:
        stream = fleet.stream("camera-7")
        level(stream, 1)
        servers.at(stream.host).dims = (3, 2, 1)
        with pytest.raises(StreamError, match="or outputs of an unexpected shape; use the same version"):
            level(stream, 2)


def test_a_port_that_nobody_listens_on_is_lost_at_once(servers: Servers) -> None:
    [port] = free_ports(1)
    with pytest.raises(ServerLost, match=f"127.0.0.1:{port}: .*Connection refused"):
        Fleet([f"127.0.0.1:{port}"], "kth", timeout_s=300)
    with Fleet([f"127.0.0.1:{port}", servers.all[0].address], "kth") as fleet:
        assert fleet.is_avoided(f"127.0.0.1:{port}")


@pytest.mark.parametrize("timeout_s", [0, -1, float("nan"), float("inf"), "10", None, True])
def test_an_invalid_time_limit_is_refused(timeout_s: object) -> None:
    with pytest.raises(ConfigError, match=r"timeout_s: got .*, expected a positive number of seconds"):
        Fleet(["a:1"], "kth", timeout_s=timeout_s)  # type: ignore[arg-type]


@pytest.mark.parametrize("model", ["", None, 7])
def test_an_invalid_model_name_is_refused(model: object) -> None:
    with pytest.raises(ConfigError, match="model: got "):
        Fleet(["a:1"], model)  # type: ignore[arg-type]

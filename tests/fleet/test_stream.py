"""Streams on fake servers: sequences, answers, restarts."""

import logging

import numpy as np
import pytest

from e3d_deploy.errors import BundleError, ConfigError, ServerLost, ShapeError, StreamError
from e3d_deploy.fleet import Fleet, Stream
from e3d_deploy.fleet.hashing import ranking
from tests.fleet.conftest import Servers
from tests.fleet.fake_server import picture, running
from tests.triton.server import free_ports


def level(stream: Stream, value: int) -> float:
    """Push a picture, and return the prediction of the fake model: the sum of the levels that it has seen."""
    return float(stream.push(picture(value))[0, 0, 0])


def test_a_stream_is_one_sequence_on_the_first_host_of_its_ranking(servers: Servers) -> None:
    with servers.fleet() as fleet:
        stream = fleet.stream("camera-7")
        assert stream.host is None
        assert [level(stream, value) for value in (1, 2, 3, 4)] == [1, 3, 6, 10]
        assert stream.host == ranking("camera-7", fleet.hosts)[0]
        server = servers.at(stream.host)
        assert [(one.number, one.start, one.end) for one in server.requests] == [
            ("0", True, False),
            ("1", False, False),
            ("2", False, False),
            ("3", False, False),
        ]
        [sequence] = {one.sequence for one in server.requests}
        assert 0 < sequence < 2**63
        assert (stream.pushed, stream.restarts) == (4, 0)
    assert server.states == {}  # closing the fleet ends the sequence
    assert servers.other(server.address).requests == []


def test_answers_are_a_prediction_or_a_forecast(servers: Servers) -> None:
    with servers.fleet() as fleet:
        stream = fleet.stream("camera-7")
        prediction = stream.push(picture(1))
        future = stream.push(picture(2), horizon=5)
        assert (prediction.shape, prediction.dtype) == ((1, 2, 3), np.float32)
        assert (future.shape, future.dtype) == ((5, 2, 3, 1), np.uint8)
        assert future.flags.writeable
        assert [one.outputs for one in servers.at(stream.host).requests] == [["prediction"], ["forecast"]]


def test_two_streams_of_one_host_are_two_sequences(servers: Servers) -> None:
    with servers.fleet() as fleet:
        names = [name for name in map(str, range(50)) if ranking(name, fleet.hosts)[0] == fleet.hosts[0]][:2]
        one, two = map(fleet.stream, names)
        assert [level(one, 1), level(two, 10), level(one, 2), level(two, 20)] == [1, 10, 3, 30]
        assert len(servers.at(fleet.hosts[0]).states) == 2
        assert len(servers.at(fleet.hosts[0]).peers) == 2  # a broken connection affects one stream


def test_forecasts_of_large_pictures_are_received(servers: Servers) -> None:
    """The default limit of gRPC is 4 MB."""
    for server in servers.all:
        server.dims = (512, 512, 3)
    with servers.fleet() as fleet:
        future = fleet.stream("camera-7").push(np.ones((512, 512, 3), np.uint8), horizon=8)
        assert future.nbytes > 4 << 20
        assert (future == 1).all()


def test_a_lost_host_is_replaced_and_the_stream_restarts_from_its_context(
    servers: Servers, caplog: pytest.LogCaptureFixture
) -> None:
    with servers.fleet() as fleet, caplog.at_level(logging.WARNING, "e3d_deploy.fleet"):
        stream = fleet.stream("camera-7")
        for value in (1, 2, 3, 4, 5):
            level(stream, value)
        first = stream.host
        assert first is not None
        servers.stop[first]()
        assert level(stream, 6) == 4 + 5 + 6  # the context is 3 pictures, and the new one is among them
        second = servers.other(first)
        assert [(one.level, one.start) for one in second.requests] == [(4, True), (5, False), (6, False)]
        assert level(stream, 7) == 4 + 5 + 6 + 7
        assert (stream.host, stream.restarts, stream.pushed) == (second.address, 1, 7)
    assert f"{first}: lost (" in caplog.messages[0]
    assert f"stream camera-7: restarted on {second.address} from its last 3 pictures" in caplog.messages[1]


def test_a_young_stream_restarts_from_all_its_pictures(servers: Servers) -> None:
    with servers.fleet() as fleet:
        stream = fleet.stream("camera-7")
        level(stream, 1)
        servers.stop[stream.host or ""]()
        assert level(stream, 2) == 3


def test_the_context_can_be_given(servers: Servers) -> None:
    with servers.fleet(context=2) as fleet:
        stream = fleet.stream("camera-7")
        for value in (1, 2, 3, 4):
            level(stream, value)
        servers.stop[stream.host or ""]()
        assert level(stream, 5) == 9


def test_a_host_that_is_down_at_the_start_is_replaced_without_a_restart(servers: Servers) -> None:
    first = ranking("camera-7", [one.address for one in servers.all])[0]
    servers.stop[first]()
    with servers.fleet() as fleet:
        stream = fleet.stream("camera-7")
        assert level(stream, 1) == 1
        assert (stream.host, stream.restarts) == (servers.other(first).address, 0)


def test_pictures_are_kept_although_the_caller_overwrites_them(servers: Servers) -> None:
    buffer = picture(0)
    with servers.fleet() as fleet:
        stream = fleet.stream("camera-7")
        for value in (1, 2, 3):
            buffer[:] = value
            stream.push(buffer)
        servers.stop[stream.host or ""]()
        buffer[:] = 4
        assert float(stream.push(buffer)[0, 0, 0]) == 2 + 3 + 4


def test_a_sequence_that_the_server_dropped_restarts_on_the_same_host(
    servers: Servers, caplog: pytest.LogCaptureFixture
) -> None:
    with servers.fleet() as fleet:
        stream = fleet.stream("camera-7")
        for value in (1, 2, 3, 4):
            level(stream, value)
        host = stream.host
        [old] = servers.at(host).states
        servers.at(host).states.clear()  # what happens after the idle time of the server
        assert level(stream, 5) == 3 + 4 + 5
        assert (stream.host, stream.restarts) == (host, 1)
        assert old not in servers.at(host).states  # a late request of the old sequence cannot reach the new one
        assert not fleet.is_avoided(host or "")
    assert "must specify the START flag" in caplog.text


def test_a_host_that_comes_back_gets_new_streams_and_keeps_no_moved_ones(
    servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    with servers.fleet() as fleet:
        stream = fleet.stream("camera-7")
        level(stream, 1)
        first = servers.at(stream.host)
        servers.stop[first.address]()
        level(stream, 2)
        with running(first, port=int(first.address.rsplit(":")[-1])):
            level(stream, 3)
            assert stream.host != first.address  # moving back would cost another restart
            stream.close()
            with fleet.stream("camera-7") as early:
                level(early, 4)
                assert early.host != first.address  # it was lost less than AVOID_S ago
            monkeypatch.setattr("e3d_deploy.fleet.fleet.time.monotonic", lambda: 1e12)
            late = fleet.stream("camera-7")
            assert level(late, 5) == 5
            assert late.host == first.address


def test_avoided_hosts_are_tried_if_no_other_answers(servers: Servers) -> None:
    with servers.fleet() as fleet:
        for host in fleet.hosts:
            fleet.avoid(host, "a test")
        servers.stop[fleet.hosts[0]]()
        stream = fleet.stream("camera-7")
        assert level(stream, 1) == 1
        assert stream.host == fleet.hosts[1]


def test_without_any_server_each_is_named_with_its_reason_and_the_stream_recovers(servers: Servers) -> None:
    with servers.fleet() as fleet:
        stream = fleet.stream("camera-7")
        for value in (1, 2, 3, 4):
            level(stream, value)
        for stop in servers.stop.values():
            stop()
        with pytest.raises(ServerLost) as error:
            level(stream, 5)
        assert error.value.exit_code == 6
        assert str(error.value).startswith("model 'kth': no server answers (")
        for host in fleet.hosts:
            assert f"{host}: " in str(error.value)
        assert "Connection refused" in str(error.value)
        assert (stream.pushed, stream.host) == (4, None)
        one = servers.all[0]
        with running(one, port=int(one.address.rsplit(":")[-1])):
            assert level(stream, 5) == 3 + 4 + 5


def test_an_invalid_picture_changes_nothing(servers: Servers) -> None:
    with servers.fleet() as fleet:
        stream = fleet.stream("camera-7")
        level(stream, 1)
        for bad, text in (
            (np.zeros((2, 4, 1), np.uint8), "picture: got [2, 4, 1] uint8, expected [H, W, C] = [2, 3, 1]; resize it"),
            (np.zeros((2, 3, 1), np.float32), "picture: got float32, expected uint8, the only type"),
            (np.ma.masked_all((2, 3, 1), np.uint8), "picture: its mask hides 6 of 6 values"),
            ("picture", "picture: got [] <U7"),
        ):
            with pytest.raises(ShapeError) as error:
                stream.push(bad)
            assert text in str(error.value)
        for horizon in (0, -1, 1.5, True, 1001):
            with pytest.raises(ConfigError, match="horizon: got "):
                stream.push(picture(9), horizon=horizon)  # type: ignore[arg-type]
        assert level(stream, 2) == 3
        assert (stream.pushed, stream.restarts) == (2, 0)


def test_an_id_can_be_open_once(servers: Servers) -> None:
    with servers.fleet() as fleet:
        stream = fleet.stream("camera-7")
        with pytest.raises(StreamError, match="stream 'camera-7': is open already; close it first"):
            fleet.stream("camera-7")
        stream.close()
        stream.close()
        fleet.stream("camera-7")
        with pytest.raises(StreamError, match="stream 'camera-7': it was closed; open it again"):
            stream.push(picture(1))
        for name in ("", 7, None):
            with pytest.raises(ConfigError, match="expected its id as text"):
                fleet.stream(name)  # type: ignore[arg-type]


def test_a_closed_fleet_refuses_calls(servers: Servers) -> None:
    with servers.fleet() as fleet:
        stream = fleet.stream("camera-7")
        level(stream, 1)
    fleet.close()
    with pytest.raises(StreamError, match="fleet: it was closed; open it again"):
        stream.push(picture(2))
    with pytest.raises(StreamError, match="fleet: it was closed; open it again"):
        fleet.stream("camera-8")


def test_a_new_list_moves_only_the_streams_that_now_have_another_first_host(servers: Servers) -> None:
    one, two = (server.address for server in servers.all)
    with Fleet([one], "kth") as fleet:
        streams = [fleet.stream(f"camera-{number}") for number in range(8)]
        for stream in streams:
            assert [level(stream, value) for value in (1, 2, 3)] == [1, 3, 6]
        fleet.set_hosts([two, one])
        moved = [stream for stream in streams if ranking(stream.name, [one, two])[0] == two]
        assert 0 < len(moved) < 8
        for stream in streams:
            assert level(stream, 4) == (9 if stream in moved else 10)
            assert stream.host == (two if stream in moved else one)
            assert stream.restarts == (1 if stream in moved else 0)
        assert len(servers.at(one).states) == 8 - len(moved)  # the sequences of moved streams were ended
        fleet.set_hosts([two])
        for stream in streams:
            level(stream, 5)
            assert (stream.host, stream.restarts) == (two, 1)


def test_the_same_list_brings_streams_back_to_a_host_that_answers_again(servers: Servers) -> None:
    with servers.fleet() as fleet:
        stream = fleet.stream("camera-7")
        level(stream, 1)
        first = servers.at(stream.host)
        servers.stop[first.address]()
        level(stream, 2)
        fleet.set_hosts(fleet.hosts)  # the first host is still down
        level(stream, 3)
        assert stream.host == servers.other(first.address).address
        with running(first, port=int(first.address.rsplit(":")[-1])):
            fleet.set_hosts(fleet.hosts)
            assert level(stream, 4) == 2 + 3 + 4
            assert stream.host == first.address


def test_an_unusable_list_changes_nothing(servers: Servers) -> None:
    one, two = servers.all
    two.parameters["e3d_bundle"] = "bbbb"
    [port] = free_ports(1)
    with Fleet([one.address], "kth") as fleet:
        stream = fleet.stream("camera-7")
        level(stream, 1)
        for hosts, error in (
            ([], ConfigError),
            ([f"127.0.0.1:{port}"], ServerLost),
            ([two.address], BundleError),
            ([one.address, two.address], BundleError),
        ):
            with pytest.raises(error):
                fleet.set_hosts(hosts)
            assert fleet.hosts == (one.address,)
        assert level(stream, 2) == 3
        assert stream.restarts == 0

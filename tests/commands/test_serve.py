"""`e3d serve`, run as a process."""

import json
import shutil
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner
from websockets.sync.client import connect

from e3d_deploy.cli import main
from e3d_deploy.serve.protocol import SUBPROTOCOL
from e3d_deploy.serve.settings import ServerSettings
from tests.serve.conftest import TOKEN, WAIT_S

CLIP = Path(__file__).parents[2] / "e3d_deploy" / "data" / "clips" / "pedestrians.mp4"


@contextmanager
def serving(bundle: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run the command in another process; yield the process and the address that it printed."""
    command = [sys.executable, "-m", "e3d_deploy", "serve", str(bundle), "--port", "0", "--backend", "onnxruntime"]
    with subprocess.Popen([*command, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process, process.stdout.readline().strip()
        finally:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_server_in_an_orderly_way(exported: Path, tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "token").write_text("a secret\n")
    options = ("--token-file", str(tmp_path / "token"), "--source", str(CLIP))
    with serving(exported / "tiny.e3d", *options) as (process, address):
        page, _, token = address.partition("#token=")
        assert token == "a%20secret"
        assert httpx.get(f"{page}readyz").json() == {"status": "ready"}
        model = httpx.get(f"{page}v1/model", headers={"Authorization": "Bearer a secret"}).json()
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=60)
    assert model["sources"] == [{"id": "1", "name": "pedestrians.mp4"}]
    assert (model["name"], model["backend"], model["precision"]) == ("tiny", "onnxruntime", "fp32")
    assert (process.returncode, stdout) == (128 + number, "")
    assert stderr.splitlines()[-1] == "interrupted"
    assert "Traceback" not in stderr


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate")
def test_other_machines_are_served_over_tls(exported: Path, tmp_path: Path) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2"]
    make = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-keyout",
        str(key),
        "-out",
        str(cert),
        *subject,
    ]
    subprocess.run(make, check=True, capture_output=True)
    options = ("--host", "0.0.0.0", "--token", TOKEN, "--tls-cert", str(cert), "--tls-key", str(key))
    trusted = ssl.create_default_context(cafile=str(cert))
    with serving(exported / "tiny.e3d", *options) as (process, address):
        assert address.startswith("https://0.0.0.0:")
        page = address.partition("#")[0].replace("0.0.0.0", "127.0.0.1")
        assert httpx.get(f"{page}readyz", verify=trusted).status_code == 200
        assert httpx.get(f"{page}v1/model", verify=trusted).status_code == 401
        with connect(f"wss{page[5:]}v1/live", subprotocols=[SUBPROTOCOL], ssl=trusted) as viewer:
            viewer.send(json.dumps({"type": "open", "source": "webcam", "horizon": 1, "token": TOKEN}))
            assert json.loads(viewer.recv(timeout=WAIT_S))["type"] == "ready"
        process.terminate()
        process.communicate(timeout=60)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--host", "0.0.0.0"], "--token or --token-file, and either --tls-cert with --tls-key or --behind-proxy"),
        (["--host", "0.0.0.0", "--token", "x"], "either --tls-cert with --tls-key or --behind-proxy"),
        (["--host", "no such host"], "--token or --token-file"),
        (["--host", "203.0.113.7", "--token", "x", "--behind-proxy"], "--host 203.0.113.7 --port 0: "),
        (["--source", "none.mp4"], "none.mp4: no such file or folder"),
        (["--source", "-"], "standard input cannot be served"),
        (["--tls-cert", "cert.pem"], "only one of --tls-cert and --tls-key"),
        (["--tls-cert", __file__, "--tls-key", __file__], "give a certificate and its key as PEM"),
        (["--token", "a", "--token-file", __file__], "give one of them"),
        (["--renewal", "often"], "renewal"),
    ],
)
def test_invalid_options_exit_with_2(exported: Path, options: list[str], said: str) -> None:
    command = ["serve", str(exported / "tiny.e3d"), "--backend", "onnxruntime", "--port", "0"]
    done = CliRunner().invoke(main, [*command, *options])
    assert done.exit_code == 2, done.output
    assert said in done.output.replace("\n", " ")


def test_a_port_in_use_is_an_error(exported: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = CliRunner().invoke(
            main, ["serve", str(exported / "tiny.e3d"), "--backend", "onnxruntime", "--port", str(port)]
        )
    assert done.exit_code == 2
    assert f"--port {port}: Address already in use" in done.output


def test_a_memory_limit_below_one_stream_exits_with_7(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    done = CliRunner().invoke(
        main,
        ["serve", str(exported / "tiny.e3d"), "--backend", "onnxruntime", "--port", "0", "--memory-limit", "0.001"],
    )
    assert done.exit_code == 7
    assert "memory_limit_bytes" in done.output
    assert not list(tmp_path.iterdir())


def test_a_horizon_that_needs_too_much_memory_exits_with_7(exported: Path) -> None:
    options = ["--backend", "onnxruntime", "--port", "0", "--horizon", "10000", "--max-sessions", "1024"]
    done = CliRunner().invoke(main, ["serve", str(exported / "tiny.e3d"), *options])
    assert done.exit_code == 7, done.output
    assert "--horizon 10000 --max-sessions 1024" in done.output


def test_options_reach_the_settings(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[ServerSettings] = []

    @contextmanager
    def caught(_: object, settings: ServerSettings) -> Iterator[None]:
        taken.append(settings)
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr("e3d_deploy.serve.run.serving", caught)
    command = ["serve", str(exported / "tiny.e3d"), "--backend", "onnxruntime"]
    options = "--idle-timeout 7 --max-upload 2.5 --max-sessions 3 --memory-limit 40 --horizon 4 --renewal refresh:5"
    others = "--behind-proxy --token x --origin https://a.example/ --origin https://b.example --host 0.0.0.0 --port 1"
    CliRunner().invoke(main, [*command, *options.split(), *others.split()])
    CliRunner().invoke(main, command)
    given, default = taken
    assert (given.idle_timeout_s, given.max_upload_bytes, given.max_sessions) == (7, 2_500_000, 3)
    assert (given.memory_limit_bytes, given.horizon, given.renewal) == (40_000_000, 4, "refresh:5")
    assert (given.behind_proxy, given.token, given.host, given.port) == (True, "x", "0.0.0.0", 1)
    assert given.origins == ("https://a.example", "https://b.example")
    assert default == ServerSettings(name="tiny", precision="fp32", horizon=3)  # horizon of the bundle


def test_a_server_that_ends_by_itself_is_an_error(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_: object) -> None:
        raise OSError("the socket is gone")

    monkeypatch.setattr("uvicorn.Server.main_loop", fail)
    done = CliRunner().invoke(main, ["serve", str(exported / "tiny.e3d"), "--backend", "onnxruntime", "--port", "0"])
    assert done.exit_code == 1
    assert "the server ended unexpectedly" in done.output


def test_a_missing_library_is_named_with_its_extra(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.delitem(sys.modules, "e3d_deploy.serve.run", raising=False)
    done = CliRunner().invoke(main, ["serve", str(exported / "tiny.e3d")])
    assert done.exit_code == 4
    assert "uvicorn is not installed; pip install 'e3d_deploy[serve]'" in done.output

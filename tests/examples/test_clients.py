"""The clients of REST and WebSocket, against a server that runs as a process."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from tests.commands.test_serve import CLIP, serving
from tests.data.test_data import gray_levels, write_video
from tests.examples.conftest import EXAMPLES
from tests.tools import e3d

COUNT = 30
"""Number of pictures of the uploaded clip."""


@pytest.fixture(scope="module")
def server(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """Yield the address of a server that offers CLIP, and the file of its token."""
    token = tmp_path_factory.mktemp("server") / "token"
    token.write_text("a secret\n")
    with serving(exported / "tiny.e3d", "--token-file", str(token), "--source", str(CLIP)) as (_, address):
        yield address.partition("/#")[0], token


def client(name: str, *arguments: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, EXAMPLES / name, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def test_the_forecast_of_the_server_is_that_of_e3d_predict(
    server: tuple[str, Path], exported: Path, tmp_path: Path
) -> None:
    address, token = server
    there, here = tmp_path / "there.npz", tmp_path / "here.npz"
    done = client("rest_client.py", address, exported / "clip.npy", "--horizon", 2, "-o", there, "--token-file", token)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["tiny on onnxruntime: 4 frames of context", str(there)]
    clip = np.load(exported / "clip.npy")[-4:]
    np.save(tmp_path / "context.npy", clip)
    options = ("--context", 4, "--horizon", 2, "--backend", "onnxruntime")
    e3d("predict", exported / "tiny.e3d", tmp_path / "context.npy", *options, "-o", here)
    with np.load(there) as theirs, np.load(here) as ours:
        np.testing.assert_allclose(theirs["frames"], ours["frames"], atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [((), "401: "), (("--horizon", 1000), "422: horizon")],
    ids=["without the token", "with a horizon that is too long"],
)
def test_a_refused_request_prints_the_reason_of_the_server(
    arguments: tuple[object, ...], reason: str, server: tuple[str, Path], tmp_path: Path
) -> None:
    address, token = server
    given = (*arguments, "--token-file", token) if arguments else ()
    done = client("rest_client.py", address, CLIP, "-o", tmp_path / "a.npz", *given)
    assert done.returncode == 1
    assert done.stderr.startswith(f"Error: {reason}")
    assert list(tmp_path.iterdir()) == []


def test_a_busy_server_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)
    import rest_client

    waits: list[float] = []
    monkeypatch.setattr(rest_client.time, "sleep", waits.append)
    busy = httpx.Response(429, headers={"Retry-After": "3"}, json={"error": {"code": "busy", "message": "busy"}})
    answers = iter([busy, busy, httpx.Response(200, text="done")])
    with httpx.Client(base_url="http://server", transport=httpx.MockTransport(lambda _: next(answers))) as made:
        assert rest_client.send(made, "GET", "/v1/model").text == "done"
    assert waits == [3, 3]


def test_an_uploaded_clip_is_followed_to_its_end(server: tuple[str, Path], tmp_path: Path) -> None:
    address, token = server
    clip = write_video(tmp_path / "clip.mp4", gray_levels((16, 24), [8 * step for step in range(COUNT)]))
    done = client("live_client.py", address, clip, "--horizon", 2, "--token-file", token)
    assert (done.returncode, done.stderr) == (0, "")
    seen = [json.loads(line) for line in done.stdout.splitlines()]
    assert seen[-1]["index"] == COUNT - 1
    assert seen[-1]["novelty"] > 0


@pytest.mark.parametrize("source", ["offer:7", "missing.mp4"])
def test_a_source_that_the_server_does_not_have_is_an_error(source: str, server: tuple[str, Path]) -> None:
    address, token = server
    done = client("live_client.py", address, source, "--token-file", token)
    assert done.returncode == 1
    assert done.stderr.startswith("Error: ")
    assert len(done.stderr.splitlines()) == 1


def test_a_session_without_the_token_is_refused_with_the_reason(server: tuple[str, Path]) -> None:
    done = client("live_client.py", server[0], "offer:1")
    assert done.returncode == 1
    assert "token" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_token_file_that_does_not_exist_is_an_error(tmp_path: Path) -> None:
    for name, *arguments in (("live_client.py", "offer:1"), ("rest_client.py", CLIP, "-o", tmp_path / "a.npz")):
        done = client(name, "http://127.0.0.1:9", *arguments, "--token-file", tmp_path / "absent")
        assert done.returncode == 1
        assert len(done.stderr.splitlines()) == 1
        assert str(tmp_path / "absent") in done.stderr


def test_an_address_without_a_server_is_an_error(tmp_path: Path) -> None:
    for name, *arguments in (("live_client.py", "offer:1"), ("rest_client.py", CLIP, "-o", tmp_path / "a.npz")):
        done = client(name, "http://127.0.0.1:9", *arguments)
        assert done.returncode == 1
        assert done.stderr.startswith("Error: ")
        assert len(done.stderr.splitlines()) == 1

"""Follow a live session of `e3d serve`: upload a clip, or name a source of the server, and print each picture's score.

    python live_client.py http://127.0.0.1:8000 walk.mp4 --horizon 5
    python live_client.py http://127.0.0.1:8000 offer:1 --horizon 5 --token-file token

Needs httpx and websockets. docs/serve.md describes the messages.
"""

import argparse
import json
import struct
import sys
from pathlib import Path
from typing import Any

import httpx
from websockets.exceptions import WebSocketException
from websockets.sync.client import connect
from websockets.typing import Subprotocol


def upload(server: str, clip: Path, token: str | None) -> str:
    """Return the name under which a session can open an uploaded clip."""
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    files = {"clip": (clip.name, clip.read_bytes())}
    response = httpx.post(f"{server}/v1/clips", headers=headers, files=files, timeout=120)
    if response.is_error:
        raise RuntimeError(response.json()["error"]["message"])
    return str(response.json()["source"])


def parts(message: bytes) -> tuple[dict[str, Any], bytes]:
    """Split a binary message into its header and its pictures, which are uint8 [H, W, C] one after another."""
    (length,) = struct.unpack_from("<I", message)
    return json.loads(message[4 : 4 + length]), message[4 + length :]


def follow(server: str, source: str, horizon: int, token: str | None) -> None:
    """Print a line for each picture until the source ends.

    Raises:
        RuntimeError: the server refused or ended the session.
    """
    address = server.replace("http", "ws", 1) + "/v1/live"
    with connect(address, subprotocols=[Subprotocol("e3d.v1")], max_size=None) as socket:
        socket.send(json.dumps({"type": "open", "source": source, "horizon": horizon, "token": token}))
        for message in socket:
            if isinstance(message, bytes):
                header, _ = parts(message)
                shown = ("index", "time_s", "error", "copy_error", "novelty", "latency_ms")
                print(json.dumps({name: header[name] for name in shown}), flush=True)
            elif (told := json.loads(message))["type"] == "error":
                raise RuntimeError(told["message"])


def main() -> None:
    parser = argparse.ArgumentParser(description="Follow a live session of `e3d serve`.")
    parser.add_argument("server", help="address of the server, such as http://127.0.0.1:8000")
    parser.add_argument("source", help="file of a clip to upload, or offer:ID")
    parser.add_argument("--horizon", type=int, default=1, help="number of frames to forecast")
    parser.add_argument("--token-file", type=Path, help="file with the token of the server")
    given = parser.parse_args()
    try:
        server, token = given.server.rstrip("/"), given.token_file.read_text().strip() if given.token_file else None
        source = given.source if given.source.startswith("offer:") else upload(server, Path(given.source), token)
        follow(server, source, given.horizon, token)
    except (OSError, RuntimeError, httpx.HTTPError, WebSocketException) as error:
        sys.exit(f"Error: {error}")
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main()

"""Send a clip to `e3d serve` and save the forecast of its next frames.

    python rest_client.py http://127.0.0.1:8000 walk.mp4 --horizon 10 -o forecast.mp4 --token-file token

Needs httpx, and nothing else on this machine. The name of the output decides the format: .npz (array `frames`,
float32 [1, T, H, W, C]) or .mp4.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import httpx

ATTEMPTS = 5  # requests to a server that is busy
TIMEOUT_S = 120.0  # time for an upload and its forecast


def send(client: httpx.Client, method: str, path: str, **request: Any) -> httpx.Response:
    """Return the response to a request; wait and repeat it while the server is busy (429, 503).

    Raises:
        RuntimeError: the server refused the request; the text is the reason that it gave.
    """
    for attempt in range(ATTEMPTS):
        response = client.request(method, path, **request)
        if response.is_success:
            return response
        if response.status_code not in (429, 503) or attempt == ATTEMPTS - 1:
            break
        time.sleep(float(response.headers.get("Retry-After", 1)))
    is_json = "json" in response.headers.get("Content-Type", "")
    reason = response.json()["error"]["message"] if is_json else response.reason_phrase
    raise RuntimeError(f"{response.status_code}: {reason}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Forecast a clip with `e3d serve`.")
    parser.add_argument("server", help="address of the server, such as http://127.0.0.1:8000")
    parser.add_argument("clip", type=Path, help="video, GIF, .npy or .npz")
    parser.add_argument("-o", "--output", type=Path, required=True, help="forecast to write, .npz or .mp4")
    parser.add_argument("--horizon", type=int, help="number of frames; the maximum of the server by default")
    parser.add_argument("--token-file", type=Path, help="file with the token of the server")
    given = parser.parse_args()
    try:
        headers = {"Authorization": f"Bearer {given.token_file.read_text().strip()}"} if given.token_file else {}
        content = given.clip.read_bytes()
        with httpx.Client(base_url=given.server, headers=headers, timeout=TIMEOUT_S) as client:
            model = send(client, "GET", "/v1/model").json()
            print(f"{model['name']} on {model['backend']}: {model['context']} frames of context")
            fields = {"format": given.output.suffix.lstrip(".")}
            if given.horizon is not None:
                fields["horizon"] = str(given.horizon)
            forecast = send(client, "POST", "/v1/predict", data=fields, files={"clip": (given.clip.name, content)})
        given.output.write_bytes(forecast.content)
    except (OSError, RuntimeError, httpx.HTTPError) as error:
        sys.exit(f"Error: {error}")
    print(given.output)


if __name__ == "__main__":
    main()

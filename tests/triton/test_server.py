"""Tests of the model in a real Triton server. Forecasts are compared with those of the local runtime."""

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from e3d_deploy import runtime
from e3d_deploy.data.clips import PEDESTRIANS, read_clips
from e3d_deploy.data.form import Form
from e3d_deploy.runtime import Bundle
from e3d_deploy.shipped import extracted
from e3d_deploy.triton.config import Serving
from e3d_deploy.triton.contract import FORECAST, PREDICTION
from e3d_deploy.triton.repository import write_repository
from tests.runtime.streams.test_streams_isolated import OTHER_SIZE
from tests.triton.client import Client, Result, connected, inputs_of, options
from tests.triton.server import Addresses, serving, why_not

STREAMS, LENGTH, HORIZON = 8, 12, 3
IDLE_S = 1.0
"""Idle time of the model `short` (s)."""
Pictures = NDArray[np.uint8]

pytestmark = pytest.mark.skipif(bool(reason := why_not()), reason=reason)


@pytest.fixture(scope="module")
def server(exported: Path, any_batch: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Addresses]:
    """Serve the tiny bundle for one stream (`one`, and `short` with a short idle time) and for any number (`any`)."""
    repository = tmp_path_factory.mktemp("models")
    models = {"one": (exported / "tiny.e3d", 60.0), "any": (any_batch, 60.0), "short": (exported / "tiny.e3d", IDLE_S)}
    for name, (bundle, idle_s) in models.items():
        settings = Serving(backend="onnxruntime", threads=1, idle_s=idle_s)
        written = tmp_path_factory.mktemp("written") / "models"
        write_repository([Bundle.open(bundle)], written, name=name, serving=settings)
        shutil.move(written / name, repository)
    with serving(repository) as addresses:
        yield addresses


@pytest.fixture(scope="module")
def clips() -> Pictures:
    """Return a clip of each stream from the package's own video, [stream, T, H, W, C]."""
    with extracted(PEDESTRIANS) as path:
        (video,) = read_clips(path, Form(image_size=(16, 24), channels=1)).clips
    return np.stack([np.asarray(video[9 * number : 9 * number + LENGTH]) for number in range(STREAMS)])


def served(client: Client, clips: Pictures, *, horizon: int | None) -> list[list[Result]]:
    """Send the pictures of all clips in turn, each clip as a sequence, and return the results of each clip."""
    for t in range(LENGTH):
        for number, clip in enumerate(clips):
            marks = {"start": t == 0, "end": t == LENGTH - 1}
            client.send(f"{number} {t}", number + 1, clip[t], horizon=horizon if t % 4 == 3 else None, **marks)
    results = client.receive(clips[:, :, 0, 0, 0].size)
    return [[results[f"{number} {t}"] for t in range(LENGTH)] for number in range(len(clips))]


def expected(bundle: Path, clip: Pictures) -> tuple[list[NDArray[np.float32]], list[Pictures]]:
    """Return the predictions and the forecasts of a plain stream after each picture."""
    predictions, forecasts = [], []
    with runtime.load(bundle, "onnxruntime", threads=1) as predictor:
        stream = predictor.stream()
        for picture in clip:
            stream.push(picture)
            predictions.append(stream.forecast(1)[0])
            forecasts.append(stream.predict(HORIZON))
    return predictions, forecasts


def test_interleaved_streams_give_the_bits_of_the_local_runtime(
    server: Addresses, exported: Path, clips: Pictures
) -> None:
    """The local stream has the default renewal of the bundle, which the server keeps."""
    with connected(server.grpc, "one") as client:
        answers = served(client, clips, horizon=HORIZON)
    for clip, results in zip(clips, answers, strict=True):
        predictions, forecasts = expected(exported / "tiny.e3d", clip)
        for t, result in enumerate(results):
            np.testing.assert_array_equal(result[PREDICTION], predictions[t])
            if t % 4 == 3:
                np.testing.assert_array_equal(result[FORECAST], forecasts[t])
            else:
                assert result[FORECAST] is None, "it was not requested"


def test_streams_that_are_stepped_together_agree_with_the_local_runtime(
    server: Addresses, any_batch: Path, clips: Pictures
) -> None:
    with connected(server.grpc, "any") as client:
        answers = served(client, clips, horizon=HORIZON)
    for clip, results in zip(clips, answers, strict=True):
        predictions, forecasts = expected(any_batch, clip)
        found = [result[PREDICTION] for result in results]
        np.testing.assert_allclose(found, predictions, rtol=0, atol=OTHER_SIZE)
        forecast = results[3][FORECAST]
        assert forecast is not None
        np.testing.assert_allclose(forecast.astype(int), forecasts[3].astype(int), rtol=0, atol=1)
    assert server.metric("nv_inference_count") > server.metric("nv_inference_exec_count"), "requests were batched"


def test_a_request_without_start_is_refused(server: Addresses, clips: Pictures) -> None:
    with (
        connected(server.grpc, "one") as client,
        pytest.raises(InferenceServerException, match="must specify the START"),
    ):
        client.infer(77, clips[0, 0])


def test_ids_of_sequences_may_be_texts_with_the_same_beginning(
    server: Addresses, exported: Path, clips: Pictures
) -> None:
    """The control input of Triton for ids has only their length and first characters."""
    ids = ("a long name of a camera 1", "a long name of a camera 2")
    with connected(server.grpc, "one") as client:
        rounds = [
            [client.infer(name, clips[number, t], start=t == 0, end=t == 2) for number, name in enumerate(ids)]
            for t in range(3)
        ]
    for number in range(2):
        predictions, _ = expected(exported / "tiny.e3d", clips[number])
        np.testing.assert_array_equal([results[number][PREDICTION] for results in rounds], predictions[:3])


def test_an_expired_sequence_frees_its_state_and_is_refused(server: Addresses, clips: Pictures) -> None:
    with connected(server.grpc, "short") as client:
        client.infer(5, clips[0, 0], start=True)
        wait_until(lambda: streams_of(server, "short") == 1)
        wait_until(lambda: streams_of(server, "short") == 0)
        with pytest.raises(InferenceServerException, match="must specify the START"):
            client.infer(5, clips[0, 1])
        client.infer(5, clips[0, 0], start=True, end=True)


def test_a_bad_request_fails_alone_and_its_sequence_goes_on(server: Addresses, exported: Path, clips: Pictures) -> None:
    predictions, _ = expected(exported / "tiny.e3d", clips[0])
    with connected(server.grpc, "one") as client:
        client.infer(9, clips[0, 0], start=True)
        for horizon in (0, 1001):
            with pytest.raises(
                InferenceServerException, match=f"INVALID_ARG.* horizon: got {horizon}, expected 1 to 1000"
            ):
                client.infer(9, clips[0, 1], horizon=horizon)
        with pytest.raises(InferenceServerException, match=r"unexpected shape for input 'picture'"):
            client.infer(9, clips[0, 1, :8])
        _, only_horizon = inputs_of(clips[0, 1], 3)
        with pytest.raises(
            InferenceServerException, match=r"INVALID_ARG.* picture: got \[0\] uint8, expected \[H, W, C"
        ):
            client.connection.infer("one", [only_horizon], **options(9, 3))
        result = client.infer(9, clips[0, 1], end=True)
    np.testing.assert_array_equal(result[PREDICTION], predictions[1])


def test_a_sequence_that_starts_again_begins_a_new_stream(server: Addresses, exported: Path, clips: Pictures) -> None:
    predictions, _ = expected(exported / "tiny.e3d", clips[1])
    with connected(server.grpc, "one") as client:
        for marks in ({"end": True}, {}, {"end": True}):
            client.infer(11, clips[0, 0], start=True)
            client.infer(11, clips[0, 1], **marks)
            again = [client.infer(11, clips[1, t], start=t == 0, end=t == 2)[PREDICTION] for t in range(3)]
            np.testing.assert_array_equal(again, predictions[:3])


def streams_of(server: Addresses, model: str) -> float:
    return server.metric("e3d_streams", model=model)


def wait_until(true: Callable[[], bool]) -> None:
    """Wait until a condition is true, for at most 20 s."""
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)

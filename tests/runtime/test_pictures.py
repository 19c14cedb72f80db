"""Arrays that forecasts are written to."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from e3d_deploy.errors import ConfigError, ResourceLimit, ShapeError
from e3d_deploy.runtime import pictures
from tests.fake_backend import CONFIG, FakeBackend, picture, predictor_of

SHAPE = (2, 4, 8, 1)
"""Shape of a forecast of two pictures."""


@pytest.mark.parametrize("horizon", [0, -1, True, "3", 1.0, np.nan, np.inf, None, -(10**400), np.array([1, 2])])
@pytest.mark.parametrize("out", [None, np.empty(SHAPE, np.uint8)])
def test_a_horizon_that_is_no_number_of_frames_is_refused(horizon: Any, out: NDArray[Any] | None) -> None:
    with pytest.raises(ConfigError, match=r"horizon: got .*, expected a whole number of 1 or more"):
        pictures.forecast_array(horizon, CONFIG, np.uint8, out)


@pytest.mark.parametrize("horizon", [2, np.int64(2), np.uint8(2), np.array(2)])
def test_whole_numbers_of_numpy_are_taken(horizon: Any) -> None:
    assert pictures.forecast_array(horizon, CONFIG, np.uint8, None).shape == SHAPE
    assert pictures.forecast_array(horizon, CONFIG, np.float32, None).shape == (2, 1, 4, 8)


@pytest.mark.parametrize(
    ("horizon", "nbytes"),
    [
        (10**14, "3,200,000,000,000,000 bytes"),
        (2**62, r"at least 2\*\*67 bytes|147,573,952,589,676,412,928 bytes"),
        (10**400, r"at least 2\*\*1333 bytes"),
        (10**5000, r"at least 2\*\*16614 bytes"),
    ],
    ids=["memory", "addresses", "numbers", "digits"],
)
def test_more_than_there_is_memory_or_addresses_is_said_in_bytes(horizon: int, nbytes: str) -> None:
    with pytest.raises(ResourceLimit, match=f"the forecast takes ({nbytes}), .*; ask for fewer frames"):
        pictures.forecast_array(horizon, CONFIG, np.uint8, None)


def broadcast() -> NDArray[Any]:
    """Return a writable array whose pictures all share the same memory."""
    return as_strided(np.empty(SHAPE[1:], np.uint8), SHAPE, (0, 8, 1, 1))


@pytest.mark.parametrize(
    ("out", "message"),
    [
        (
            np.empty((3, 4, 8, 1), np.uint8),
            r"got \[3, 4, 8, 1\] uint8, .*; give np\.empty\(\[2, .* 1\], np\.uint8\)",
        ),
        (np.empty(SHAPE, np.float32), "got .* float32"),
        (np.empty(SHAPE, np.int8), "got .* int8"),
        (np.broadcast_to(np.empty(SHAPE[1:], np.uint8), SHAPE), "is read-only"),
        (np.frombuffer(bytes(64), np.uint8).reshape(SHAPE), "is read-only"),
        (broadcast(), "some elements share the same memory"),
        (as_strided(np.empty(64, np.uint8), SHAPE, (16, 4, 1, 1)), "some elements share the same memory"),
        (np.ma.masked_array(np.empty(SHAPE, np.uint8)), r"got MaskedArray, .*; give np\.asarray\(out\)"),
        (np.empty(SHAPE, np.uint8).tolist(), "got list"),
        (bytearray(64), "got bytearray"),
    ],
)
def test_what_a_forecast_cannot_be_written_to_is_refused(out: Any, message: str) -> None:
    expected = r"expected an array \[2, 4, 8, 1\] uint8 that can be written"
    with pytest.raises(ShapeError, match=f"out: {message}") as error:
        pictures.forecast_array(2, CONFIG, np.uint8, out)
    assert error.match(expected)


def test_another_byte_order_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"out: got \[2, 1, 4, 8\] >f4, expected .* float32"):
        pictures.forecast_array(2, CONFIG, np.float32, np.empty((2, 1, 4, 8), ">f4"))


def test_other_layouts_are_written(tmp_path: Path) -> None:
    stream = predictor_of(FakeBackend()).stream()
    stream.push(picture(100))
    expected = stream.predict(2)
    mapped = np.memmap(tmp_path / "out", np.uint8, "w+", shape=SHAPE)
    wide = np.empty((2, 4, 16, 3), np.uint8)
    for out in (mapped, wide[:, ::-1, ::2, 1:2], np.empty(SHAPE[::-1], np.uint8).T):
        assert stream.predict(2, out=out) is out
        np.testing.assert_array_equal(out, expected)


def test_pictures_that_numpy_cannot_hold_are_a_resource_limit() -> None:
    class Large:
        def __array__(self, *_: object, **__: object) -> NDArray[Any]:
            return np.empty(2**55, np.uint8)

    class Gone:
        def __array__(self, *_: object, **__: object) -> NDArray[Any]:
            raise OSError("the file was closed")

    stream = predictor_of(FakeBackend()).stream()
    with pytest.raises(ResourceLimit, match="out of memory"):
        stream.push(Large())
    with pytest.raises(ShapeError, match=r"is not an array that NumPy can read .*closed"):
        stream.push(Gone())


def test_no_memory_for_a_picture_of_floats_is_a_resource_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*_: object, **__: object) -> NDArray[Any]:
        raise MemoryError

    predictor, given = predictor_of(FakeBackend()), picture(100) / np.float32(255)
    with predictor.streams() as streams:
        for stream in (predictor.stream(), streams.open()):
            with monkeypatch.context() as patched:
                patched.setattr("e3d_deploy.frames.to_frames", no_memory)
                with pytest.raises(ResourceLimit, match="out of memory"):
                    stream.push(given)
            assert stream.pushed == 0
            stream.push(given)

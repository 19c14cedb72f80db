"""Areas of a GIF that no frame covers are black."""

import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from e3d_deploy.data.clips import play
from e3d_deploy.data.form import Form
from e3d_deploy.data.gif import with_black_background
from e3d_deploy.errors import SourceLost

FORM = Form(image_size=(6, 9), channels=1)


def image(left: int, colour: int, *, disposal: int = 0, palette: bytes = b"") -> bytes:
    """Return an image of 3×3 pixels of one colour; each pixel clears the code table, so codes stay 3 bits wide."""
    codes = [code for _ in range(9) for code in (4, colour)] + [5]
    data = sum(code << 3 * place for place, code in enumerate(codes)).to_bytes(-(-3 * len(codes) // 8), "little")
    control = b"!\xf9\x04" + bytes([disposal << 2, 10, 0, 0, 0])
    head = b"," + struct.pack("<HHHHB", left, 0, 3, 3, 0x80 if palette else 0)
    return control + head + palette + b"\x02" + bytes([len(data)]) + data + b"\0"


def gif(*images: bytes, background: int = 1) -> bytes:
    """Return a GIF of 9×6 pixels with a black-and-white palette."""
    return (
        b"GIF89a"
        + struct.pack("<HHBBB", 9, 6, 0x80, background, 0)
        + bytes([0] * 3 + [255] * 3)
        + b"".join(images)
        + b";"
    )


def shown(path: Path) -> list[list[bool]]:
    """Return for each frame if the left, middle and right third of its upper half are white."""
    return [(picture[1, 1::3, 0] > 127).tolist() for picture in play(path, FORM).pictures]


def test_the_background_colour_is_not_shown(tmp_path: Path) -> None:
    (tmp_path / "1.gif").write_bytes(gif(image(0, 1), image(3, 1)))
    assert shown(tmp_path / "1.gif") == [[True, False, False], [True, True, False]]


def test_a_frame_that_is_disposed_of_leaves_black(tmp_path: Path) -> None:
    (tmp_path / "1.gif").write_bytes(gif(image(0, 1, disposal=2), image(3, 1, disposal=2), image(6, 1)))
    assert shown(tmp_path / "1.gif") == [[True, False, False], [False, True, False], [False, False, True]]


def test_a_palette_of_an_image_is_kept(tmp_path: Path) -> None:
    white = bytes([255] * 3 + [0] * 3)
    (tmp_path / "1.gif").write_bytes(gif(image(0, 1), image(3, 0, palette=white), image(6, 1)))
    assert shown(tmp_path / "1.gif") == [[True, False, False], [True, True, False], [True, True, True]]


@pytest.mark.parametrize("background", [0, 255])
def test_a_gif_with_a_black_or_missing_background_is_not_changed(background: int) -> None:
    content = gif(image(0, 1), background=background)
    assert with_black_background(content) == content


def test_two_concatenated_gifs_are_not_changed() -> None:
    content = gif(image(0, 1)) * 2
    assert with_black_background(content) == content


def test_a_gif_of_pillow_is_shown_as_before(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pages = [Image.fromarray(rng.integers(0, 256, (6, 9), dtype=np.uint8)) for _ in range(4)]
    pages[0].save(tmp_path / "1.gif", save_all=True, append_images=pages[1:], background=9, disposal=1)
    frames = np.stack(list(play(tmp_path / "1.gif", FORM).pictures))[..., 0]
    np.testing.assert_array_equal(frames, np.stack([np.asarray(page) for page in pages]))


def test_a_cut_gif_breaks_off(tmp_path: Path) -> None:
    content = gif(image(0, 1), image(3, 1), image(6, 1))
    (tmp_path / "1.gif").write_bytes(content[:-20])
    with pytest.raises(SourceLost, match="broke off after 2 of 3 frames"):
        shown(tmp_path / "1.gif")
    for end in range(len(content)):
        assert len(with_black_background(content[:end])) >= end

"""Order of pictures and clips by their names."""

import re
from pathlib import Path

import pytest

from e3d_deploy.data.order import in_order


def ordered(names: list[str]) -> list[str]:
    return [file.name for file in in_order(Path(name) for name in sorted(names)).files]


@pytest.mark.parametrize(
    "names",
    [
        ["frame_1.png", "frame_2.png", "frame_10.png"],
        ["IMG_1.png", "img_2.png", "Img_9.PNG", "img_10.png"],
        ["f_0.5.png", "f_1.25.png", "f_1.5.png", "f_9.75.png", "f_10.25.png"],
        ["f_0.5.png", "f_1.png", "f_1.25.png", "f_2.png", "f_10.png"],
        ["clip.1.png", "clip.2.png", "clip.10.png"],
        ["1.1.png", "1.2.png", "1.9.png", "1.10.png", "1.11.png"],
        ["t_-10.png", "t_-5.png", "t_0.png", "t_5.png", "t_10.png"],
        ["-1.5.png", "-1.25.png", "0.png", "0.5.png"],
        ["f-1.png", "f0.png", "f1.png"],
        ["frame-1.png", "frame-2.png", "frame-10.png"],
        ["2024-05-01T12.30.09.png", "2024-05-01T12.30.10.png", "2024-12-01T01.00.00.png"],
        ["1714567890.25.jpg", "1714567890.5.jpg", "1714567891.125.jpg"],
        ["a1.2.3.png", "a1.2.10.png", "a1.10.1.png"],
        ["09.png", "0a.png", "0f.png", "10.png", "1a.png"],
        ["left_9.png", "left_10.png", "right_9.png", "right_10.png"],
        ["a.png", "a0.png", "a1.png"],
        ["v1.5", "v1.25"][::-1],
    ],
)
def test_files_are_in_the_order_that_their_names_mean(names: list[str]) -> None:
    assert ordered(names) == names


@pytest.mark.parametrize(
    ("names", "remark"),
    [
        (["frame_9.png", "frame_a.png", "frame_10.png"], "names follow no one pattern, .* frame_9.png comes before"),
        (["f_1.25.png", "f_1.5.png"], "read as decimals: f_1.25.png comes before f_1.5.png"),
        (["a1.2.9.png", "a1.2.10.png"], "several points are read as whole numbers: a1.2.9.png comes before a1.2.10"),
    ],
)
def test_an_order_that_could_be_another_is_said(names: list[str], remark: str) -> None:
    found = in_order(map(Path, names)).remark
    assert found is not None
    assert re.search(remark, found)


@pytest.mark.parametrize(
    "names", [["1.png", "2.png", "10.png"], ["1.50.png", "1.25.png"], ["1.1.png", "1.10.png"], ["0a", "09"], ["x"], []]
)
def test_an_order_without_doubt_is_not_remarked(names: list[str]) -> None:
    assert in_order(map(Path, names)).remark is None

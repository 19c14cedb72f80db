"""Fit pictures to a frame of a different aspect ratio: stretch, crop or pad them. Needs no PyTorch."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from e3d_deploy.config import Fit
from e3d_deploy.data.form import Form
from e3d_deploy.data.remarks import Remarks


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Size that a picture is scaled to, and the frame that the scaled picture is centred on."""

    scaled: tuple[int, int]
    """Height and width after scaling (pixels)."""
    frame: tuple[int, int]
    """Height and width of the frame (pixels)."""

    def place(self, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Crop a scaled picture [h, w, C] to the frame, or pad it with black bars; return the result, [H, W, C]."""
        if self.scaled == self.frame:
            return picture
        (h, w), (H, W) = self.scaled, self.frame
        top, left = max(h - H, 0) // 2, max(w - W, 0) // 2
        cut = picture[top : top + H, left : left + W]
        frame = np.zeros((H, W, picture.shape[2]), np.uint8)
        top, left = (H - cut.shape[0]) // 2, (W - cut.shape[1]) // 2
        frame[top : top + cut.shape[0], left : left + cut.shape[1]] = cut
        return frame


def fit_shape(shown: tuple[float, float], frame: tuple[int, int], fit: Fit) -> Placement:
    """Return the placement of a picture on a frame.

    Args:
        shown: height and width at which image viewers display the picture, in any unit; only their ratio matters.
        frame: height and width of the frame (pixels).
        fit: `stretch`, `crop` or `pad`.
    """
    (h, w), (H, W) = shown, frame
    if fit == "stretch":
        return Placement(scaled=frame, frame=frame)
    if fit == "crop":
        scale = max(H / h, W / w)
        return Placement(scaled=(max(H, round(h * scale)), max(W, round(w * scale))), frame=frame)
    scale = min(H / h, W / w)
    scaled = (min(H, max(1, round(h * scale))), min(W, max(1, round(w * scale))))
    return Placement(scaled=scaled, frame=frame)


def say_change(
    name: str,
    stored: tuple[int, int],
    shown: tuple[float, float],
    colours: tuple[str, str],
    form: Form,
    remarks: Remarks,
) -> None:
    """Log how pictures are fitted to the frame.

    Only one change is logged: that of the aspect ratio, otherwise that of the size, otherwise that of the colours.

    Args:
        name: name of the source.
        stored: height and width of a picture after it is turned upright (pixels).
        shown: height and width at which image viewers display the picture.
        colours: pixel formats of the picture and of the frame.
        form: size, colours and fit of the model's frames.
        remarks: collects the remark.
    """
    before, after = colours
    is_gray = after in ("L", "gray")
    if fit_shape(shown, form.image_size, "pad").scaled != form.image_size:
        text = {
            "stretch": "%s: %d×%d %s, stretched to %d×%d %s, which changes its aspect ratio; train with --fit crop or "
            "pad to keep it",
            "crop": "%s: %d×%d %s, cropped to its centre to fill %d×%d %s",
            "pad": "%s: %d×%d %s, with black bars around it to fill %d×%d %s",
        }[form.fit]
        remarks.say("shape", text, name, *map(round, shown), before, *form.image_size, after)
    elif stored != form.image_size:
        remarks.say("change", "%s: %d×%d %s, scaled to %d×%d %s", name, *stored, before, *form.image_size, after)
    elif is_gray != before.startswith(("gray", "L", "I;16", "F", "1")):
        remarks.say("change", "%s: %s, converted to %s", name, before, "gray" if is_gray else "colour")

"""Convert decoded video frames to the pictures that players show. Needs no PyTorch."""

from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from e3d_deploy.data.fit import Placement, fit_shape, say_change
from e3d_deploy.data.form import Form
from e3d_deploy.data.pictures import say_transparent
from e3d_deploy.data.remarks import Remarks

if TYPE_CHECKING:
    import av
    from av.video.reformatter import VideoReformatter

LIMITED = 1
"""FFmpeg's code of the limited colour range, 16 to 235."""
UNSPECIFIED, BT_709 = 2, 1
"""FFmpeg's codes of an unspecified colour space, and of BT.709, the colour space of HD video."""
HD = (576, 1280)
"""Height above which, and width from which, players assume BT.709 if the colour space is unspecified (pixels)."""
HDR = {16: "PQ", 18: "HLG"}
"""Names of the transfer curves of HDR, by FFmpeg's codes."""
EXPANDED = ((np.arange(256) - 16) * (255 / 219)).round().clip(0, 255).astype(np.uint8)
"""Gray level of the full range for each gray level of the limited range."""


@dataclass(frozen=True)
class Turn:
    """Rotation and flips to show a picture upright: first the transposition, then the flips."""

    transposed: bool = False
    flip_rows: bool = False
    flip_columns: bool = False

    @classmethod
    def of(cls, matrix: NDArray[np.int32]) -> "Turn":
        """Return the turn, by a multiple of 90° and with flips, that is nearest to a display matrix, [9]."""
        a, b, _, c, d = matrix[:5].tolist()
        if abs(b) + abs(c) > abs(a) + abs(d):
            return cls(transposed=True, flip_rows=b < 0, flip_columns=c < 0)
        return cls(flip_rows=d < 0, flip_columns=a < 0)

    def apply(self, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return a picture [H, W, C] turned upright."""
        turned = picture.transpose(1, 0, 2) if self.transposed else picture
        turned = turned[::-1] if self.flip_rows else turned
        return np.ascontiguousarray(turned[:, ::-1] if self.flip_columns else turned)


UPRIGHT = Turn()


class FrameConverter:
    """Converts decoded frames to the size and colours of a model, and remarks on the conversions.

    Args:
        name: name of the source, for remarks.
        form: size, colours and fit of the model's frames.
        aspect: pixel aspect ratio, width / height; None if the video does not state it.
        remarks: collects remarks on conversions.
    """

    def __init__(self, name: str, form: Form, *, aspect: Fraction | None, remarks: Remarks) -> None:
        self.name, self.form, self.remarks = name, form, remarks
        self.aspect = float(aspect) if aspect else 1.0
        self.pixel_format = "gray" if form.channels == 1 else "rgb24"
        self.kind: tuple[object, ...] | None = None
        self.stored = (0, 0)
        self.turn, self.placement = UPRIGHT, Placement(scaled=form.image_size, frame=form.image_size)
        self.scaler: VideoReformatter
        self.has_alpha = self.is_limited_gray = self.is_hd = False

    def __call__(self, frame: "av.VideoFrame") -> NDArray[np.uint8]:
        """Return a picture [H, W, C]: upright, blended over black where transparent, scaled by averaging and fitted."""
        if frame.key_frame or self.stored != (frame.height, frame.width):
            colours = (frame.format.name, frame.colorspace, frame.color_range)
            kind = (frame.height, frame.width, *colours, frame.interlaced_frame)
            if kind != self.kind:
                self.kind = kind
                self._plan(frame)
        if self.is_hd:
            frame.colorspace = BT_709
        if self.has_alpha:
            frame = self._over_black(frame)
        h, w = self.placement.scaled[::-1] if self.turn.transposed else self.placement.scaled
        picture = self.scaler.reformat(frame, w, h, self.pixel_format, interpolation="AREA").to_ndarray()
        picture = picture.reshape(h, w, self.form.channels).astype(np.uint8, copy=False)
        if self.is_limited_gray:
            picture = EXPANDED[picture]
        if self.turn != UPRIGHT:
            picture = self.turn.apply(picture)
        return self.placement.place(picture)

    def _plan(self, frame: "av.VideoFrame") -> None:
        """Choose the conversion for frames like this one; the format of a video changes only at key frames."""
        from av.video.reformatter import VideoReformatter

        self.scaler = VideoReformatter()  # reused for equal frames, because each scaler builds its own tables
        self.stored = (frame.height, frame.width)
        # The matrix is read only here, because reading may take as long as decoding. It applies to all frames.
        matrix: Any = frame.side_data.get("DISPLAYMATRIX")
        self.turn = UPRIGHT if matrix is None else Turn.of(np.frombuffer(matrix, np.int32))
        h, w = self.stored[::-1] if self.turn.transposed else self.stored
        shape = (frame.height, frame.width * self.aspect)
        shown = shape[::-1] if self.turn.transposed else shape
        self.placement = fit_shape(shown, self.form.image_size, self.form.fit)
        kind = frame.format
        self.has_alpha = kind.has_palette or any(part.is_alpha for part in kind.components)
        # A gray picture is the luma, which is the same in BT.601 and BT.709.
        is_unspecified = frame.colorspace == UNSPECIFIED and not kind.is_rgb and self.form.channels > 1
        self.is_hd = is_unspecified and (frame.height > HD[0] or frame.width >= HD[1])
        # swscale assumes the full range for gray, whatever the frame states.
        self.is_limited_gray = kind.name.startswith("gray") and frame.color_range == LIMITED
        say_change(self.name, (h, w), shown, (kind.name, self.pixel_format), self.form, self.remarks)
        if frame.interlaced_frame:
            self.remarks.say("interlaced", "%s: interlaced; both fields are read as one picture, so edges of moving "
                             "objects look combed; deinterlace the video first", self.name)  # fmt: skip
        if curve := HDR.get(frame.color_trc):
            self.remarks.say("hdr", "%s: HDR (%s); its values are used without tone mapping, so pictures look paler "
                             "than on a screen; convert it to SDR first", self.name, curve)  # fmt: skip

    def _over_black(self, frame: "av.VideoFrame") -> "av.VideoFrame":
        import av

        rgba = frame.to_ndarray(format="rgba")
        alpha = rgba[..., 3:].astype(np.uint16)
        if alpha.min() == 255:
            return frame
        say_transparent(self.name, self.remarks)
        colours = ((rgba[..., :3] * alpha + 127) // 255).astype(np.uint8)
        return av.VideoFrame.from_ndarray(colours, "rgb24")

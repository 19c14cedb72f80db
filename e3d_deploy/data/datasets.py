"""Samples for training and evaluation; the index of a sample determines its content."""

import logging
import sys
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Subset

from e3d_deploy.card import Window
from e3d_deploy.data.form import Form
from e3d_deploy.data.moving_mnist import load_digits, moving_mnist, read_digits
from e3d_deploy.data.rate import ALL, Selection, warn_of_interval
from e3d_deploy.data.remarks import Remarks
from e3d_deploy.data.sources import Clip, Source, decay_windows, fixed_windows, frames_before, open_source
from e3d_deploy.data.splits import Split
from e3d_deploy.errors import ClipError, ConfigError
from e3d_deploy.progress import Notify, silent

log = logging.getLogger(__name__)

GENERATED = "moving-mnist"
"""Name of the source that is made on the fly."""
Key = int | tuple[int, int]
"""Index of a sample, or a pair: the index, and the number of frames to return before the sample."""


class Extendable(Dataset[Tensor]):
    """Samples that can be extended by the frames before them, for training with a burn-in."""

    rates: tuple[float, ...] = ()
    """Frame rates of the videos that state one (frames per second)."""
    skipped: tuple[str, ...] = ()
    """Files that were skipped because they cannot be read."""
    remarks: Mapping[str, Remarks] = {}
    """Remarks on the sources, by name of the source."""

    def __getitem__(self, key: Key) -> Tensor:
        index, before = key if isinstance(key, tuple) else (key, 0)
        return self.take(index, before)

    @abstractmethod
    def take(self, index: int, before: int) -> Tensor:
        """Return a sample and the `before` frames that precede it, float32 [before + T, C, H, W]."""

    @abstractmethod
    def spare(self, index: int) -> int:
        """Return the maximum number of frames that can precede a sample."""


class MovingMNIST(Extendable):
    """Moving MNIST made on the fly; sample i is the same in every run with the same seed.

    Samples are frames, float32 in [0, 1], [T, 1, H, W]. Frames that are requested before a sample are appended to it
    instead: the result begins with the same frame as the sample.

    Args:
        split: split whose digits are used.
        length: number of frames in a sample.
        image_size: height and width of a frame (pixels).
        count: number of digits in a sample.
        seed: seed of all samples.
        digits: replaces the digits of the split, uint8 [N, 28, 28].
    """

    def __init__(
        self,
        split: Split,
        *,
        length: int,
        image_size: tuple[int, int] = (64, 64),
        count: int = 2,
        seed: int = 0,
        digits: NDArray[np.uint8] | None = None,
    ) -> None:
        self.digits = load_digits(split) if digits is None else digits
        self.length, self.image_size, self.count, self.seed = length, image_size, count, seed

    def take(self, index: int, before: int) -> Tensor:
        rng, length = np.random.default_rng((self.seed, index)), before + self.length
        return _frames(moving_mnist(self.digits, rng, length=length, image_size=self.image_size, count=self.count))

    def spare(self, index: int) -> int:
        return sys.maxsize


class Windows(Extendable):
    """Windows at random positions of longer clips; endless.

    Samples are frames, float32 in [0, 1], [T, C, H, W]. If fewer frames than requested precede a window, the window is
    moved towards the end of its clip until enough frames precede it.

    Args:
        clips: clips [T, H, W, C], uint8 or float in [0, 1]; clips shorter than a window are not used.
        length: frames of a window.
        seed: seed of all samples.

    Raises:
        ClipError: no clip is as long as a window.
    """

    def __init__(self, clips: Sequence[Clip], *, length: int, seed: int = 0) -> None:
        self.clips = [clip for clip in clips if len(clip) >= length]
        if not self.clips:
            raise ClipError(f"no clip has {length} frames; give longer clips, or a shorter context or horizon")
        self.length, self.seed = length, seed
        self.shares = np.array([len(clip) - length + 1.0 for clip in self.clips])
        self.shares /= self.shares.sum()

    def take(self, index: int, before: int) -> Tensor:
        clip, rng = self._clip(index)
        start = max(int(rng.integers(len(clip) - self.length + 1)), before)
        return _frames(clip[start - before : start + self.length])

    def spare(self, index: int) -> int:
        return len(self._clip(index)[0]) - self.length

    def _clip(self, index: int) -> tuple[Clip, np.random.Generator]:
        """Return the clip of a sample, and the generator from which the position of the sample is drawn."""
        rng = np.random.default_rng((self.seed, index))
        return self.clips[rng.choice(len(self.clips), p=self.shares)], rng


class FixedWindows(Extendable):
    """The windows of a source, in order: those that its format fixes, or successive windows of its clips.

    Samples are frames, float32 in [0, 1], [T, C, H, W].

    Args:
        source: a source that was opened for windows of this length.
        length: frames of a window.
        most: maximum number of windows; more are thinned out evenly.
        windows: clip and first frame of each window, [n, 2]; None: the windows of the source.
    """

    def __init__(
        self, source: Source, *, length: int, most: int | None = None, windows: NDArray[np.int64] | None = None
    ) -> None:
        windows = fixed_windows(source, length=length) if windows is None else windows
        if most is not None and most < len(windows):
            windows = windows[np.arange(most) * len(windows) // most]
        self.source, self.windows, self.length = source, windows, length
        self.leads = frames_before(source, windows)

    def __len__(self) -> int:
        return len(self.windows)

    def take(self, index: int, before: int) -> Tensor:
        clip, first = self.windows[index].tolist()
        return _frames(self.source.clips[clip][first - before : first + self.length])

    def spare(self, index: int) -> int:
        return int(self.leads[index])


class Shuffled(Extendable):
    """The windows of a source, repeated endlessly, each time in a different order.

    Sample i is element i mod n of the permutation that is drawn from the seed and i // n.
    """

    def __init__(self, part: FixedWindows, seed: int) -> None:
        self.part, self.seed = part, seed

    def take(self, index: int, before: int) -> Tensor:
        return self.part.take(self._place(index), before)

    def spare(self, index: int) -> int:
        return self.part.spare(self._place(index))

    def _place(self, index: int) -> int:
        again, place = divmod(index, len(self.part))
        return int(_permutation(self.seed, again, len(self.part))[place])


class Mixture(Extendable):
    """Several data sets as one: each sample comes from a data set that is drawn in proportion to the shares."""

    def __init__(self, parts: Sequence[Extendable], shares: Sequence[float], seed: int = 0) -> None:
        self.parts, self.seed = parts, seed
        self.shares = np.array(shares) / sum(shares)

    def take(self, index: int, before: int) -> Tensor:
        return self._part(index).take(index, before)

    def spare(self, index: int) -> int:
        return self._part(index).spare(index)

    def _part(self, index: int) -> Extendable:
        # The choice has random numbers of its own: a data set that drew its sample from the same numbers would only see
        # those that selected it.
        rng = np.random.default_rng((self.seed, index, 1))
        return self.parts[rng.choice(len(self.parts), p=self.shares)]


def check_read(texts: Iterable[str], *, layout: str | None, skip_bad: bool) -> None:
    """Check that at least one source reads files if options for reading files are given.

    Args:
        texts: all sources of a command, `moving-mnist` or sources for `open_source`.
        layout: layout of arrays; None: not given.
        skip_bad: True if `--skip-bad` was given.

    Raises:
        ConfigError: an option for reading files is given, but all sources are generated.
    """
    options = (("--layout", layout is not None), ("--skip-bad", skip_bad))
    given = [name for name, is_given in options if is_given]
    if given and all(text == GENERATED for text in texts):
        raise ConfigError(
            f"{GENERATED}: is generated, so no file is read; omit {' and '.join(given)}, or give --data SOURCE"
        )


def training_data(
    data: Sequence[tuple[str, float]],
    form: Form,
    *,
    length: int,
    seed: int,
    digits: Path | None = None,
    burn_in: bool = False,
    skip_bad: bool = False,
    progress: Notify = silent,
) -> Extendable:
    """Open the training split of one or more sources, as endless samples.

    If the format of a source fixes its windows, they are repeated, each time in a new order. Windows of other sources
    begin at random positions. A sample of each source is read here, so that unreadable data are refused before training
    begins.

    Args:
        data: sources, `moving-mnist` or sources for `open_source`, and their shares of the samples.
        form: size, colours and fit of the model's frames.
        length: number of frames in a sample.
        seed: seed of all samples.
        digits: file of digits for Moving MNIST, see `read_digits`; None: the package's digits.
        burn_in: True if frames before the samples will be requested; a warning names sources that have no such frames.
        skip_bad: skip files that cannot be read.
        progress: receives messages while files are opened.

    Raises:
        ConfigError: a share is not above 0, the model takes colours but a source is Moving MNIST, `digits` is given
            without Moving MNIST, or `digits` contains held-out digits.
        ClipError, ShapeError, BackendUnavailable, OSError: see `open_source`.
    """
    for text, share in data:
        if not share > 0:
            raise ConfigError(f"data: {text} has the share {share:g}, expected more than 0")
    if digits is not None and GENERATED not in [text for text, _ in data]:
        raise ConfigError(f"digits: {digits} is only for {GENERATED}; add --data {GENERATED}, or omit --digits")
    pictures = None if digits is None else read_digits(digits)
    parts: list[Extendable] = []
    rates: list[float] = []
    skipped: list[str] = []
    remarks: dict[str, Remarks] = {}
    for text, _ in data:
        if text == GENERATED:
            parts.append(_generated("train", form, length=length, seed=seed, digits=pictures))
            continue
        source = open_source(
            text,
            form,
            split="train",
            length=length,
            skip_bad=skip_bad,
            remarks=remarks.setdefault(text, Remarks()),
            progress=progress,
        )
        rates += source.frames_per_second
        skipped += source.skipped
        part, spare = _of_source(source, length=length, seed=seed)
        part[0]
        if burn_in and spare == 0:
            log.warning("%s: has no frame before its windows of %d frames, so optimizer steps with one of its windows "
                        "train without a burn-in; give longer clips, or --burn-in 0", text, length)  # fmt: skip
        parts.append(part)
    samples = parts[0] if len(parts) == 1 else Mixture(parts, [share for _, share in data], seed=seed)
    samples.rates, samples.skipped, samples.remarks = tuple(rates), tuple(skipped), remarks
    return samples


def evaluation_data(
    text: str,
    form: Form,
    *,
    split: Split,
    length: int,
    most: int | None,
    seed: int = 2**31,
    skip_bad: bool = False,
    selection: Selection = ALL,
    remarks: Remarks | None = None,
    progress: Notify = silent,
) -> "FixedWindows | Subset[Tensor]":
    """Open the windows of a split: a finite number of them, the same in every run.

    The first window is read here, so that unreadable data are refused at once.

    Args:
        text: `moving-mnist`, made of the split's digits, or a source for `open_source`.
        form: size, colours and fit of the model's frames.
        split: split to open.
        length: frames of a window.
        most: maximum number of windows; more are thinned out evenly. For `moving-mnist`, the number of windows that are
            made; None: 1,000.
        seed: seed of `moving-mnist`; the default is far from usual training seeds.
        skip_bad: skip files that cannot be read.
        selection: which frames of each clip are used.
        remarks: collects remarks, see `open_source`.
        progress: receives messages while files are opened.

    Raises:
        ConfigError: the model takes colours but the source is Moving MNIST, or the source does not support the
            selection.
        ClipError, ShapeError, BackendUnavailable, OSError: see `open_source`.
    """
    if text == GENERATED:
        _check_takes_all(selection)
        made = _generated(split, form, length=length, seed=seed)
        return Subset(made, range(1000 if most is None else most))
    source = open_source(
        text,
        form,
        split=split,
        length=length,
        skip_bad=skip_bad,
        selection=selection,
        remarks=remarks,
        progress=progress,
    )
    windows = FixedWindows(source, length=length, most=most)
    windows[0]
    return windows


def warn_of_data(data: Dataset[Tensor], window: Window | None, selection: Selection = ALL) -> None:
    """Log if the frames of `evaluation_data` are spaced differently than in training; see `rate.warn_of_interval`."""
    if isinstance(data, FixedWindows):
        warn_of_interval(data.source.name, data.source.frames_per_second, window, selection=selection)


def decay_data(
    data: "Source | str",
    ages: Sequence[int],
    form: Form,
    *,
    split: Split,
    context_length: int,
    horizon: int,
    most: int | None,
    seed: int = 2**31,
    skip_bad: bool = False,
    selection: Selection = ALL,
    progress: Notify = silent,
) -> tuple["FixedWindows | Subset[Tensor]", tuple[int, ...]]:
    """Open the windows on which the decay of a state is measured; return the windows, and the ages that fit in them.

    Windows overlap, because a window begins at each frame of a clip.

    Args:
        data: `moving-mnist`, made of the split's digits with one window per clip; a source for `open_source`; or a
            source that was opened for windows of context_length + horizon frames.
        ages: requested ages, including `context_length` (frames).
        form: size, colours and fit of the model's frames.
        split: split to open.
        context_length: frames before a forecast.
        horizon: frames of a forecast.
        most: maximum number of windows; more are thinned out evenly. For `moving-mnist`, the number of windows that are
            made; None: 32.
        seed: seed of `moving-mnist`.
        skip_bad: skip files that cannot be read.
        selection: which frames of each clip are used; applies to a source that is opened here.
        progress: receives messages while files are opened.

    Raises:
        ConfigError, ClipError, ShapeError, BackendUnavailable, OSError: see `evaluation_data`.
    """
    if data == GENERATED:
        _check_takes_all(selection)
        made = _generated(split, form, length=max(ages) + horizon, seed=seed)
        made[0]
        return Subset(made, range(32 if most is None else most)), tuple(ages)
    if isinstance(data, str):
        length = context_length + horizon
        data = open_source(
            data, form, split=split, length=length, skip_bad=skip_bad, selection=selection, progress=progress
        )
    windows, age = decay_windows(data, ages, least=context_length, horizon=horizon)
    found = FixedWindows(data, length=age + horizon, most=most, windows=windows)
    return found, tuple(one for one in ages if one <= age)


def _check_takes_all(selection: Selection) -> None:
    """Check that all frames of a generated source are selected.

    Raises:
        ConfigError: `selection` skips or resamples frames.
    """
    if not selection.takes_all:
        raise ConfigError(f"{GENERATED}: is generated, so it has no frame rate; omit --every and --resample")


def _of_source(source: Source, *, length: int, seed: int) -> tuple[Extendable, int]:
    """Return the training samples of a source, and the maximum number of frames that can precede one of them."""
    if source.windows is None:
        return Windows(source.clips, length=length, seed=seed), max(map(len, source.clips)) - length
    windows = FixedWindows(source, length=length)
    return Shuffled(windows, seed), int(windows.leads.max())


def _generated(
    split: Split,
    form: Form,
    *,
    length: int,
    seed: int,
    digits: NDArray[np.uint8] | None = None,
) -> MovingMNIST:
    if form.channels != 1:
        raise ConfigError(f"channels: Moving MNIST is gray, the model takes {form.channels} colours")
    return MovingMNIST(split, length=length, image_size=form.image_size, seed=seed, digits=digits)


@lru_cache(maxsize=8)
def _permutation(seed: int, again: int, size: int) -> NDArray[np.int64]:
    return np.random.default_rng((seed, again)).permutation(size)


def _frames(clip: NDArray[Any]) -> Tensor:
    frames = torch.from_numpy(clip).permute(0, 3, 1, 2).float()
    return frames.div(255) if clip.dtype == np.uint8 else frames

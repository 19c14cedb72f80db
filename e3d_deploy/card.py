"""Card of a model: facts that its weights do not show, such as the length of its training clips and its decay."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, get_args

from e3d_deploy.config import Fit
from e3d_deploy.errors import ConfigError

AGES = (1, 2, 3, 5, 10, 12, 15, 20, 30, 60, 100, 150)
"""Ages of the state at which the forecast error is measured by default (frames)."""
REACH, TOLERANCE = 6, 1.03
"""Limits of `Decay.ageless`: the measurement must reach age REACH · C, where C is the context length in training, and
no age above C may have more than TOLERANCE times the error at C."""

LONGEST, LARGEST = 10**9, 1e100
"""Limits of the values in a card; a card with larger values is damaged. LONGEST limits numbers of frames and clips,
and LARGEST limits errors and intervals (ms)."""


@dataclass(frozen=True, kw_only=True)
class Window:
    """Context length, horizon and frame interval of the clips that a model was trained on.

    Raises:
        ConfigError: A length is not from 1 to LONGEST, an interval is not above 0 and at most LARGEST, or
            `interval_range_ms` is not a pair.
    """

    context_length: int
    """Frames in the context."""
    horizon: int
    """Frames in the forecast."""
    interval_ms: float | None = None
    """Median time between two frames of the sources (ms); None if unknown."""
    interval_range_ms: tuple[float, float] | None = None
    """Shortest and longest time between two frames of the sources (ms); None if unknown."""

    def __post_init__(self) -> None:
        _check_whole(self, "context_length", "horizon")
        if self.interval_range_ms is not None:
            object.__setattr__(self, "interval_range_ms", tuple(self.interval_range_ms))
            if len(self.interval_range_ms) != 2 or None in self.interval_range_ms:
                raise ConfigError(
                    f"interval_range_ms: got {self.interval_range_ms}, expected the shortest and the longest interval"
                )
        for interval in (self.interval_ms, *(self.interval_range_ms or ())):
            if interval is not None and not 0 < interval <= LARGEST:
                raise ConfigError(f"interval_ms: got {interval!r}, expected more than 0")

    @classmethod
    def of_rates(cls, context_length: int, horizon: int, rates: Sequence[float]) -> "Window":
        """Return a window whose intervals are computed from the frame rates of the sources.

        Args:
            rates: known rates of the sources (frames per second); empty if no rate is known.
        """
        if not rates:
            return cls(context_length=context_length, horizon=horizon)
        intervals = sorted(1000 / rate for rate in rates)
        middle = (intervals[(len(intervals) - 1) // 2] + intervals[len(intervals) // 2]) / 2
        return cls(
            context_length=context_length,
            horizon=horizon,
            interval_ms=middle,
            interval_range_ms=(intervals[0], intervals[-1]),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the fields that are not None, as JSON values."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
            if value is not None
        }


@dataclass(frozen=True, kw_only=True)
class Decay:
    """Error of a model's forecasts at several ages of its state, measured on the same frames for every age.

    Raises:
        ConfigError: The error at age C is missing, an age or the number of clips is not from 1 to LONGEST, an error is
            not from 0 to LARGEST, or the ages have different numbers of errors.
    """

    context_length: int
    """Context length in training, C (frames)."""
    data: str
    """Source of the clips."""
    clips: int
    """Number of clips measured; `report` calls them windows."""
    mse: Mapping[int, tuple[float, ...]]
    """Squared errors for each age: one error per frame of the forecast, summed over its pixels and averaged over the
    clips."""
    copy_last: tuple[float, ...]
    """Squared errors of a forecast that repeats the last frame of the context, one per frame."""

    def __post_init__(self) -> None:
        mse = {int(age): tuple(float(one) for one in errors) for age, errors in self.mse.items()}
        object.__setattr__(self, "mse", dict(sorted(mse.items())))
        object.__setattr__(self, "copy_last", tuple(float(one) for one in self.copy_last))
        _check_whole(self, "context_length", "clips")
        if self.context_length not in mse:
            raise ConfigError(f"mse: lacks age {self.context_length}, the context length in training; measure it too")
        if not all(1 <= age <= LONGEST for age in mse):
            raise ConfigError(f"mse: got ages {min(mse)} to {max(mse)}, expected ages from 1 to {LONGEST}")
        errors = [*mse.values(), self.copy_last]
        if len({len(one) for one in errors}) != 1 or not self.copy_last:
            raise ConfigError("mse, copy_last: expected one error per frame of the forecast at each age")
        if not all(0 <= value <= LARGEST for one in errors for value in one):
            raise ConfigError(f"mse, copy_last: expected errors from 0 to {LARGEST:g}")

    def mean(self, age: int) -> float:
        """Return the error at an age, averaged over the frames of the forecast."""
        return math.fsum(self.mse[age]) / len(self.mse[age])

    def ratio(self, age: int) -> float:
        """Return the error at an age divided by the error at age C; infinite if only the error at C is 0."""
        error, reference = self.mean(age), self.mean(self.context_length)
        if reference == 0:  # clipped predictions can be exact, for example on black frames
            return math.inf if error > 0 else 1.0
        return error / reference

    @property
    def ageless(self) -> bool:
        """True if age REACH · C was measured, and no age above C has more than TOLERANCE times the error at C."""
        older = [age for age in self.mse if age > self.context_length]
        return max(self.mse) >= REACH * self.context_length and all(self.ratio(age) <= TOLERANCE for age in older)

    @property
    def verdict(self) -> str:
        """Sentence that tells how the error grows with the age of the state, and whether a renewal is needed."""
        C, older = self.context_length, [age for age in self.mse if age > self.context_length]
        worst = max(older, key=self.ratio, default=C)
        if not self.ageless and self.ratio(worst) <= TOLERANCE:
            return (
                f"the measurement ends at age {max(self.mse)}, which is too young to judge old states; "
                f"measure the decay on clips that reach age {REACH * C}"
            )
        age = max(older) if self.ageless else worst
        remedy = "may be any number of frames old" if self.ageless else "needs a renewal, which replaces old states"
        return (
            f"after {age} frames a state's forecasts are {self.ratio(age):.2f} times as wrong as after {C}; "
            f"a state of this model {remedy}"
        )

    def report(self) -> dict[str, Any]:
        """Return errors, ratios and verdict as JSON values for display; `Card.to_dict` makes the stored form."""
        copying = math.fsum(self.copy_last) / len(self.copy_last)
        return {
            "verdict": self.verdict,
            "ageless": self.ageless,
            "data": self.data,
            "windows": self.clips,
            "context_length": self.context_length,
            "horizon": len(self.copy_last),
            "ages": {
                str(age): {"mse": self.mean(age), "ratio": _finite(self.ratio(age)), "frames": list(errors)}
                for age, errors in self.mse.items()
            },
            "copy_last": {"mse": copying, "frames": list(self.copy_last)},
        }


@dataclass(frozen=True, kw_only=True)
class Card:
    """Facts about a model in addition to its config and weights, stored in the model file and in the manifest.

    Raises:
        ConfigError: `fit` is unknown.
    """

    window: Window | None = None
    decay: Decay | None = None
    fit: Fit = "stretch"
    """Method that fitted pictures with a different aspect ratio to the size of a frame in training."""
    notes: Mapping[str, Any] = field(default_factory=dict)
    """Entries unknown to this version, which are preserved."""

    def __post_init__(self) -> None:
        if self.fit not in get_args(Fit):
            raise ConfigError(f"fit: got {self.fit!r}, expected one of {', '.join(get_args(Fit))}")

    def lengths(self) -> tuple[int, int]:
        """Return the context length and horizon in training; 10 and 10 if they are unknown."""
        return (10, 10) if self.window is None else (self.window.context_length, self.window.horizon)

    def to_dict(self) -> dict[str, Any]:
        """Return the entries that differ from their defaults, as JSON values."""
        result = dict(self.notes)
        if self.fit != "stretch":
            result["fit"] = self.fit
        if self.window is not None:
            result["window"] = self.window.to_dict()
        if self.decay is not None:
            mse = {str(age): list(errors) for age, errors in self.decay.mse.items()}
            result["decay"] = {**asdict(self.decay), "mse": mse, "copy_last": list(self.decay.copy_last)}
        return result

    @classmethod
    def from_dict(cls, entries: Mapping[str, Any]) -> "Card":
        """Create a card from the entries that `to_dict` returned.

        Raises:
            ConfigError: An entry is damaged.
        """
        if not isinstance(entries, Mapping):
            raise ConfigError(f"card: got {type(entries).__name__}, expected an object; save or export the model again")
        notes = {name: value for name, value in entries.items() if name not in ("window", "decay", "fit")}
        window, decay = entries.get("window"), entries.get("decay")
        try:
            return cls(
                window=None if window is None else Window(**_known(Window, window)),
                decay=None if decay is None else Decay(**_known(Decay, decay)),
                fit=entries.get("fit", "stretch"),
                notes=notes,
            )
        except (TypeError, ValueError, AttributeError, OverflowError) as error:
            raise ConfigError(f"card: an entry is damaged ({error}); save or export the model again") from error


def _known(kind: type[Window] | type[Decay], entries: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries that this version knows; later versions may write more."""
    names = {one.name for one in fields(kind)}
    return {name: value for name, value in entries.items() if name in names}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _check_whole(entry: object, *names: str) -> None:
    for name in names:
        value = getattr(entry, name)
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= LONGEST:
            raise ConfigError(f"{name}: got {value!r}, expected a whole number from 1 to {LONGEST}")

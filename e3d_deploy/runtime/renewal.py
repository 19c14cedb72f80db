"""Renewal of a stream's state: old states are replaced by younger ones.

The age of a state is the number of frames that it has seen. A network that was trained with a context of C frames
forecasts worse from a state whose age is far above C, unless it was trained with a burn-in. A renewal keeps the age of
the state that makes the forecasts near C. docs/streams.md compares the renewals.
"""

import re
from dataclasses import dataclass
from typing import Literal

from e3d_deploy.card import Card
from e3d_deploy.errors import ConfigError

Kind = Literal["none", "refresh", "replay"]
FORMS = "none, refresh:M or replay"


@dataclass(frozen=True)
class Renewal:
    """Rule for when the states of a stream begin and end.

    All ages follow from the rule and the number of frames that the stream has seen.

    Raises:
        ConfigError: `context_length` (C) is below 1; or, for `refresh`, `states` (M) is below 2 or above max(2, C).
    """

    kind: Kind = "none"
    """Name of the rule.

    `none` keeps one state from the first frame on. `refresh` keeps M states that began at different frames; the oldest
    state makes the forecasts. `replay` keeps the last C frames and no state; each forecast steps through these frames
    first.
    """
    context_length: int = 10
    """C, a context length; the age of the state that makes the forecasts stays near C (frames)."""
    states: int = 1
    """M, the number of states that a stream holds at a time; 1 unless `kind` is `refresh`."""

    def __post_init__(self) -> None:
        if self.context_length < 1:
            raise ConfigError(f"renewal: got a context of {self.context_length} frames, expected 1 or more")
        most = max(2, self.context_length)
        if self.kind == "refresh" and not 2 <= self.states <= most:
            raise ConfigError(
                f"renewal: got refresh:{self.states}, expected 2 to {most} states for a context of "
                f"{self.context_length} frames; give refresh:2"
            )

    @classmethod
    def parse(cls, text: str, context_length: int) -> "Renewal":
        """Return the renewal that a text names: `none`, `refresh`, `refresh:M` or `replay`.

        `refresh` means `refresh:2`.

        Raises:
            ConfigError: `text` is not one of these names; or M is below 2 or above max(2, `context_length`).
        """
        if isinstance(text, str) and text in ("none", "replay"):
            return cls("none" if text == "none" else "replay", context_length)
        if isinstance(text, str) and (match := re.fullmatch(r"refresh(?::([0-9]{1,9}))?", text)):
            return cls("refresh", context_length, int(match[1] or 2))
        raise ConfigError(f"renewal: got {text!r}, expected {FORMS}, such as refresh:2")

    def __str__(self) -> str:
        return f"refresh:{self.states}" if self.kind == "refresh" else self.kind

    @property
    def spacing(self) -> int:
        """S, the number of frames between the beginnings of two states.

        S is chosen so that the mean age of the oldest state is near C.
        """
        return max(2 if self.states == 2 else 1, round(self.context_length / (self.states - 0.5)))

    @property
    def cycle(self) -> int:
        """Number of frames after which the ages repeat; 1 unless `kind` is `refresh`."""
        return self.spacing if self.kind == "refresh" else 1

    @property
    def warm_up(self) -> int:
        """Number of frames after which the ages and the cost of a stream repeat in every cycle.

        The rings that hold the history may take longer to fill.
        """
        return self.states * self.spacing if self.kind == "refresh" else self.context_length

    @property
    def steps_per_frame(self) -> float:
        """Mean number of steps per push after the warm-up; 0 for `replay`, which steps only in forecasts."""
        if self.kind == "refresh":
            return (self.states * self.spacing - 1) / self.spacing
        return 0.0 if self.kind == "replay" else 1.0

    def age(self, pushed: int) -> int:
        """Return the age of the state that makes a forecast after `pushed` frames."""
        if self.kind == "replay":
            return min(pushed, self.context_length)
        if self.kind == "none" or pushed < self.states * self.spacing:
            return pushed
        return (self.states - 1) * self.spacing + pushed % self.spacing

    def ages(self, pushed: int) -> tuple[int, ...]:
        """Return the ages of all states of a stream after `pushed` frames, oldest first."""
        if self.kind == "replay":
            return ()
        oldest = self.age(pushed)
        return tuple(range(oldest, 0, -self.spacing)) if self.kind == "refresh" else (oldest,)

    def ends(self, pushed: int) -> bool:
        """Return True if, after `pushed` frames, the oldest state is dropped before the next frame."""
        return self.kind == "refresh" and self.age(pushed) == self.states * self.spacing - 1

    def begins(self, pushed: int) -> bool:
        """Return True if, after `pushed` frames, a new state begins with the next frame."""
        return pushed == 0 or (self.kind == "refresh" and pushed % self.spacing == 0)


NONE = Renewal()


def default_renewal(card: Card, context_length: int) -> tuple[Renewal, str]:
    """Return the default renewal for a model, and the reason for the choice as a clause of a sentence.

    Args:
        card: facts about the model; the measured decay decides.
        context_length: context length to assume if the card does not record the training context (frames).
    """
    length = known_context(card, context_length)
    refresh = Renewal("refresh", length, 2)
    if card.decay is None:
        return refresh, "the decay of this model was not measured; `e3d evaluate --streaming --record` measures it"
    return Renewal("none", length) if card.decay.ageless else refresh, card.decay.verdict


def renewal_for(card: Card, context_length: int, text: str | None) -> Renewal:
    """Return the renewal that `text` names, or the default for a model if `text` is None.

    Args:
        context_length: context length to assume if the card does not record the training context (frames).

    Raises:
        ConfigError: `text` is not a renewal.
    """
    if text is None:
        return default_renewal(card, context_length)[0]
    return Renewal.parse(text, known_context(card, context_length))


def known_context(card: Card, otherwise: int) -> int:
    """Return the context length that a model was trained with, or `otherwise` if its card does not record it."""
    known = card.window or card.decay
    return otherwise if known is None else known.context_length

"""Renewal of a stream's state, so that the state that answers stays near the age that its network was trained for.

A network that saw C frames of context in training forecasts worse from a state that has seen many more, unless it was
trained with a burn-in. Renewals replace old states by younger ones; docs/streams.md compares them.
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
    """Rule for when the states of a stream begin and end. Every number in it follows from the number of frames seen.

    Raises:
        ConfigError: M is below 2 or above max(2, C), or C is below 1.
    """

    kind: Kind = "none"
    """`none`: one state since the first frame. `refresh`: M states that began at different frames, of which the oldest
    answers. `replay`: no state but the last C frames, which are seen when a forecast is asked for."""
    context_length: int = 10
    """C, the age around which states are kept (frames)."""
    states: int = 1
    """M, states at a time; 1 unless `refresh`."""

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
        """Return the renewal that `none`, `refresh`, `refresh:M` or `replay` names.

        Raises:
            ConfigError: another text, or an M that there cannot be.
        """
        if isinstance(text, str) and text in ("none", "replay"):
            return cls("none" if text == "none" else "replay", context_length)
        if isinstance(text, str) and (match := re.fullmatch(r"refresh(?::([0-9]{1,9}))?", text)):
            return cls("refresh", context_length, int(match[1] or 2))
        raise ConfigError(f"renewal: got {text!r}, expected {FORMS}; see docs/streams.md")

    def __str__(self) -> str:
        return f"refresh:{self.states}" if self.kind == "refresh" else self.kind

    @property
    def spacing(self) -> int:
        """S, frames between the beginnings of two states; with it the mean age of the oldest is about C."""
        return max(2 if self.states == 2 else 1, round(self.context_length / (self.states - 0.5)))

    @property
    def cycle(self) -> int:
        """Frames after which the ages repeat; 1 unless `refresh`."""
        return self.spacing if self.kind == "refresh" else 1

    @property
    def warm_up(self) -> int:
        """Frames after which a stream has its final ages and cost, its ring of past cells aside."""
        return self.states * self.spacing if self.kind == "refresh" else self.context_length

    @property
    def steps_per_frame(self) -> float:
        """Mean number of steps that a push takes once the stream has warmed up; `replay` steps in forecasts alone."""
        if self.kind == "refresh":
            return (self.states * self.spacing - 1) / self.spacing
        return 0.0 if self.kind == "replay" else 1.0

    def age(self, pushed: int) -> int:
        """Return the age of the state that answers after so many frames."""
        if self.kind == "replay":
            return min(pushed, self.context_length)
        if self.kind == "none" or pushed < self.states * self.spacing:
            return pushed
        return (self.states - 1) * self.spacing + pushed % self.spacing

    def ages(self, pushed: int) -> tuple[int, ...]:
        """Return the ages of all states that a stream has after so many frames, the oldest first."""
        if self.kind == "replay":
            return ()
        oldest = self.age(pushed)
        return tuple(range(oldest, 0, -self.spacing)) if self.kind == "refresh" else (oldest,)

    def ends(self, pushed: int) -> bool:
        """Return True if the oldest state does not see the frame after the first `pushed`."""
        return self.kind == "refresh" and self.age(pushed) == self.states * self.spacing - 1

    def begins(self, pushed: int) -> bool:
        """Return True if a new state sees the frame after the first `pushed` as its first."""
        return pushed == 0 or (self.kind == "refresh" and pushed % self.spacing == 0)


NONE = Renewal()


def default_renewal(card: Card, context_length: int) -> tuple[Renewal, str]:
    """Return the renewal for a model, and the reason for it in words.

    Args:
        context_length: context to assume where the card does not tell that of training.
    """
    length = known_context(card, context_length)
    refresh = Renewal("refresh", length, 2)
    if card.decay is None:
        return refresh, "the decay of this model was not measured; `e3d evaluate --streaming --record` does"
    return Renewal("none", length) if card.decay.ageless else refresh, card.decay.verdict


def renewal_for(card: Card, context_length: int, text: str | None) -> Renewal:
    """Return the renewal that a text names, or the default for a model.

    Args:
        context_length: context to assume where the card does not tell that of training.

    Raises:
        ConfigError: there is no such renewal.
    """
    if text is None:
        return default_renewal(card, context_length)[0]
    return Renewal.parse(text, known_context(card, context_length))


def known_context(card: Card, otherwise: int) -> int:
    """Return the context that a model was trained with, if its card tells it."""
    known = card.window or card.decay
    return otherwise if known is None else known.context_length

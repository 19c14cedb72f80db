"""Names of folders and files that hold a split. Needs no PyTorch."""

import re
from dataclasses import dataclass
from pathlib import Path

from e3d_deploy.data.splits import Split

SPLIT_NAMES: dict[str, Split] = {
    "train": "train", "training": "train", "trn": "train",
    "val": "valid", "valid": "valid", "validation": "valid", "validate": "valid", "dev": "valid", "eval": "valid",
    "test": "test", "testing": "test", "tst": "test",
}  # fmt: skip
"""Names of folders and files that hold a split."""
ABOUT = frozenset({"set", "data", "split", "videos", "video", "frames", "images", "clips", "sequences", "seq"})
"""Words beside such a name that tell nothing."""
_SHARD = re.compile(r"[-_.]?\d+-of-\d+")
"""Number of a piece in the name of a data set that is stored in several."""
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")
"""Boundary of two words, as in TrainData."""


@dataclass(frozen=True)
class Name:
    """Name of a folder or file that could hold a split."""

    split: Split
    prefix: str
    """Words before the split, which those of its other splits have too."""
    suffix: str
    """Words after the split, likewise."""
    is_numbered: bool
    """A number is in it too, so that it may be one clip of several."""

    @property
    def is_bare(self) -> bool:
        """True if it tells the split alone."""
        return not (self.prefix or self.suffix or self.is_numbered)


def split_name(path: Path) -> Name | None:
    """Return the split that a folder or file is named after, in any case; None if it is named otherwise."""
    stem = _CAMEL.sub(" ", _SHARD.sub("", path.name if path.is_dir() else path.stem)).casefold()
    words = re.findall(r"[^\W\d_]+|\d+", stem)
    is_numbered = any(map(str.isdecimal, words))
    words = [_split_word(word) for word in words if not word.isdecimal()]
    while words and words[-1] in ABOUT:
        words.pop()
    places = [place for place, word in enumerate(words) if word in SPLIT_NAMES]
    if not places:
        return None
    place = places[-1]
    return Name(SPLIT_NAMES[words[place]], " ".join(words[:place]), " ".join(words[place + 1 :]), is_numbered)


def _split_word(word: str) -> str:
    """Return the word of a split without one that tells nothing and is written together with it, as in trainvideos."""
    word = word.removesuffix("set") or word
    glued = (name for name in SPLIT_NAMES if word.startswith(name) and word[len(name) :] in ABOUT)
    return word if word in SPLIT_NAMES else next(glued, word)

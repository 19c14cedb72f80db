"""Recognize ground truth and masks that accompany clips, judging by their names. Needs no PyTorch."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

GROUND_TRUTH = "_gt"
"""End of the names of ground truth, as in the UCSD Pedestrian data set."""
MASKS = (GROUND_TRUTH, "_mask", "_label", "_labels", "_seg")
"""Ends of the names of files that are ground truth or masks."""
WORDS = frozenset(
    {"mask", "masks", "label", "labels", "annotation", "annotations", "gt", "groundtruth", "seg", "segmentation"}
    | {"segmentations", "trimap", "trimaps", "matte", "mattes", "bbox", "bboxes", "disparity", "disparities"}
)
"""Words for ground truth and masks: the complete name of a folder, or one word of it beside a clip's name."""
COMPOUNDS = frozenset(
    {"ground truth", "disp occ", "disp noc", "optical flow", "flow viz", "flow occ", "flow noc", "obj map"}
    | {"gt fine", "gt coarse", "gt masks", "gt frames", "gt images"}
    | {f"{word} {of}" for word in ("mask", "label", "segmentation") for of in ("color", "colour", "class", "object")}
    | {f"{of} {word}" for word in ("masks", "labels") for of in ("binary", "instance", "pixel", "semantic", "object")}
)
"""Complete names of folders of ground truth that consist of two words."""
GENERIC = frozenset(
    {"image", "images", "img", "imgs", "frame", "frames", "video", "videos", "clip", "clips", "picture", "pictures"}
    | {"rgb", "color", "colour", "jpeg", "jpegimages", "jpg", "png", "input", "inputs", "original", "raw", "data"}
)
"""Generic words, which are ignored when the names of a mask and a clip are compared."""
NO_MASKS = (
    f"not counting ground truth (files {', '.join(f'*{end}' for end in MASKS)}, folders such as masks and labels) and "
    "hidden files"
)
"""Clause in the error for folders without clips."""
_BOUNDARY = re.compile(r"[\W_]+|(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|(?<=\d)(?=[^\W\d])|(?<=[^\W\d])(?=\d)")
_HINT = re.compile("|".join(sorted(WORDS | {name.split()[0] for name in COMPOUNDS})))


def is_ground_truth(name: str) -> bool:
    """Return True if a file is ground truth or a mask, judging by the end of its name."""
    return os.path.splitext(name)[0].casefold().endswith(MASKS)


def masks_among(entries: Mapping[Path, bool], *, beside_pictures: bool) -> tuple[set[Path], set[Path]]:
    """Return the ground truth and masks among the entries of a folder, and the clips that only have such names.

    A first or last word such as `mask` marks a mask only if its clip is in the same folder: `a` or `a_frames` for
    `a_mask`, and `frames` for any mask. Without such a neighbour the entry is a clip: `wearing_mask` next to `waving`,
    or `GT3`.

    Args:
        entries: files and folders that may hold clips; True for a folder.
        beside_pictures: True if the folder also holds pictures, which any mask may belong to.
    """
    masks: set[Path] = set()
    unsure: dict[Path, list[str]] = {}
    for entry, is_folder in entries.items():
        if _HINT.search(entry.name.casefold()) is None:
            continue
        words = _words(entry, is_folder)
        letters = [word for word in words if not word.isdecimal()]
        if is_folder and (" ".join(letters) in COMPOUNDS or (len(words) == 1 and words[0] in WORDS)):
            masks.add(entry)
        elif is_ground_truth(entry.name) or (is_folder and (_ends_in_mask(letters) or WORDS.intersection(letters[:1]))):
            unsure[entry] = words
    if not unsure:
        return masks, set()
    others = {_content(_words(*one)) for one in entries.items() if one[0] not in masks and one[0] not in unsure}
    owned = {entry for entry, words in unsure.items() if beside_pictures or () in others or _owners(words) & others}
    named = {entry: words for entry, words in unsure.items() if entry not in owned}
    # A folder `mask` holds clips if there is also a folder `no_mask`.
    named |= {entry: words for entry in masks if (words := _words(entry, True)) in [one[-1:] for one in named.values()]}
    return (masks | owned) - named.keys(), set(named)


def _ends_in_mask(letters: Sequence[str]) -> bool:
    return bool(letters) and (letters[-1] in WORDS or " ".join(letters[-2:]) in COMPOUNDS)


def _owners(words: Sequence[str]) -> set[tuple[str, ...]]:
    """Return the possible names of a mask's clip, as words: those before `mask`, with or without the words after it."""
    if not _ends_in_mask([word for word in words if not word.isdecimal()]):
        return {_content(words[1:])}
    end = max(place for place, word in enumerate(words) if not word.isdecimal())
    start = end - 1 if end and " ".join(words[end - 1 : end + 1]) in COMPOUNDS else end
    return {_content(words[:start]), _content([*words[:start], *words[end + 1 :]])}


def _content(words: Sequence[str]) -> tuple[str, ...]:
    return tuple(word for word in words if word not in GENERIC)


def _words(path: Path, is_folder: bool) -> list[str]:
    return _BOUNDARY.sub(" ", path.name if is_folder else path.stem).casefold().split()

"""Recognize names of folders and files that hold a split. Needs no PyTorch."""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from e3d_deploy.data.folders import ARRAYS
from e3d_deploy.data.splits import Split

SPLIT_NAMES: dict[str, Split] = {
    "train": "train", "training": "train", "trn": "train",
    "val": "valid", "valid": "valid", "validation": "valid", "validate": "valid", "dev": "valid", "eval": "valid",
    "evaluation": "valid",
    "test": "test", "testing": "test", "tst": "test",
}  # fmt: skip
"""Words that name a split."""
ABOUT = frozenset({"set", "data", "split", "videos", "video", "frames", "images", "clips", "sequences", "seq"})
"""Filler words that may accompany the name of a split."""
ABBREVIATED: dict[str, Split] = {"tr": "train", "va": "valid", "te": "test"}
"""Abbreviations that name a split only if they are the complete name, and another entry names a matching split."""
ORDINARY = frozenset({"evaluation"})
"""Words for splits that are also usual names of clips, so that they count only with a matching training split."""
UNREAD: dict[str, Split] = {
    "seen": "train", "unseen": "test",
    "entrenamiento": "train", "validacion": "valid", "evaluacion": "valid", "prueba": "test", "pruebas": "test",
    "treino": "train", "treinamento": "train", "validacao": "valid", "avaliacao": "valid", "teste": "test",
    "testes": "test",
    "addestramento": "train", "validazione": "valid", "convalida": "valid", "valutazione": "valid", "prova": "test",
    "entrainement": "train", "apprentissage": "train", "evaluation": "valid",
}  # fmt: skip
"""English, Spanish, Portuguese, Italian and French words, without accents, that may name a split; not supported."""
UNREAD_STARTS: dict[str, Split] = {
    "обуч": "train", "трениров": "train", "валидац": "valid", "провер": "valid", "тест": "test",
    "训练": "train", "訓練": "train", "学習": "train", "验证": "valid", "驗證": "valid", "検証": "valid",
    "评估": "valid", "評価": "valid", "测试": "test", "測試": "test", "テスト": "test",
}  # fmt: skip
"""Starts of words for splits in Russian, Chinese and Japanese; endings and words such as `set` follow directly."""
SHORT = 3
"""Words for splits up to this length (letters) are not searched in longer words, such as `val` in `valley`."""
SIDES = ("start", "end")
_ANY = re.compile("|".join(SPLIT_NAMES))
LISTS = (".txt", ".csv", ".tsv", ".json", ".lst", ".list", ".pkl")
"""Suffixes of files that may be lists of the clips of a split."""
DIVIDED = frozenset({"split", "splits", "fold", "folds", "partition", "partitions"})
"""Words for a division into splits."""
LISTED = DIVIDED | {"list", "lists", "id", "ids", "files", "names", "index"}
"""Words at the ends of the names of lists of clips."""
_ABOUT_LISTS = re.compile(rf"({'|'.join(sorted(LISTED | ABOUT, key=len, reverse=True))})$")
_FOLD = re.compile(r"(?<![a-z])(?:k?folds?|splits?|cv|crossval|xval)[-_. ]?(\d+|(?<=[-_. ])[a-z])(?![a-z0-9])")
_RESOLUTION = re.compile(
    r"(?<![a-z0-9])(?:(?:240|360|480|540|576|720|1080|1440|2160)[pi]"
    r"|(?:full|half|quarter|low|high)[-_ ]?res(?:olution)?)(?![a-z0-9])"
)
_SIZE = re.compile(r"(?<![a-z0-9])\d{2,5}x\d{2,5}(?![a-z0-9])")
"""Pattern of width and height, or of the position of a tile."""
_SHARD = re.compile(r"[-_.]?\d+-of-\d+")
"""Pattern of the number of a shard, in the name of a data set that is stored in several files."""
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")
"""Boundary of two words, as in TrainData."""


@dataclass(frozen=True)
class Name:
    """Name of a folder or file that may hold a split."""

    split: Split
    prefix: str
    """Words before the split, which the names of the other splits have to share."""
    suffix: str
    """Words after the split, which the names of the other splits have to share."""
    is_numbered: bool
    """True if the name contains a number, so that it may be one clip of several."""
    is_ordinary: bool = False
    """True if the name may also be that of a clip."""

    @property
    def is_bare(self) -> bool:
        """True if the name consists only of the split."""
        return not (self.prefix or self.suffix or self.is_numbered or self.is_ordinary)


def split_name(path: Path) -> Name | None:
    """Return the split in the name of a folder or file, in any case; None if the name has none."""
    if not _could_be_split(path):
        return None
    if (split := ABBREVIATED.get((path.name if path.is_dir() else path.stem).casefold())) is not None:
        return Name(split, "", "", is_numbered=False, is_ordinary=True)
    words, is_numbered = _words(path)
    places = [place for place, word in enumerate(words) if word in SPLIT_NAMES]
    if not places:
        return None
    place = places[-1]
    before, after = " ".join(words[:place]), " ".join(words[place + 1 :])
    return Name(SPLIT_NAMES[words[place]], before, after, is_numbered, words[place] in ORDINARY)


def unread_split(path: Path) -> Split | None:
    """Return the split that the name of a folder or file suggests in words that are not supported; otherwise None."""
    decomposed = unicodedata.normalize("NFKD", _CAMEL.sub(" ", path.name)).casefold()
    letters = "".join(letter for letter in decomposed if not unicodedata.combining(letter))
    for word in re.findall(r"[^\W\d_]+", letters):
        if word in UNREAD:
            return UNREAD[word]
        if not word.isascii() and (start := next(filter(word.startswith, UNREAD_STARTS), None)) is not None:
            return UNREAD_STARTS[start]
    return None


def paired_names(entries: Sequence[Path]) -> dict[Path, Name]:
    """Return names in which a split is joined to other letters, as in `traina` and `testa`.

    They count only if a training split and a held-out split have the same other letters, so `latest` is not a split.
    """
    groups: dict[tuple[str, str], dict[Path, Name]] = defaultdict(dict)
    for entry in entries:
        name = split_name(entry)
        for one in [name] if name else _glued(entry):
            groups[one.prefix, one.suffix].setdefault(entry, one)
    found: dict[Path, Name] = {}
    for group in groups.values():
        splits = {name.split for name in group.values()}
        if "train" in splits and len(splits) > 1:
            found = group | found
    return {entry: found[entry] for entry in entries if entry in found and split_name(entry) is None}


def fold_of(path: Path) -> str | None:
    """Return the number or letter of the fold in the name of a folder or file, such as cv0_train; otherwise None."""
    name = path.name if path.is_dir() else path.stem
    text = f"{path.parent.name} {name}" if name.isdecimal() else name
    found = _FOLD.search(text.casefold())
    return None if found is None else found[1]


def is_list(path: Path) -> bool:
    """Return True for a file named like a list of the clips of a split, such as trainlist01.txt or splits.json."""
    if path.suffix.lower() not in LISTS:
        return False
    words = re.findall(r"[^\W\d_]+", _CAMEL.sub(" ", path.stem).casefold())
    bare = [word if word in LISTED else _ABOUT_LISTS.sub("", word) for word in words]
    if not words or not (bare[-1] in SPLIT_NAMES or words[-1] in ABOUT | LISTED):
        return False
    return any(word in SPLIT_NAMES and word not in ORDINARY for word in bare) or words[-1] in DIVIDED


def resolutions(folder: Path, clips: Iterable[Path]) -> list[str]:
    """Return two clips in a folder whose paths differ only in a resolution, such as 480p; empty if there are none.

    Sizes such as 640x480 count only if several clips share a size; a single clip of each size may be a tile.
    """
    seen: dict[str, str] = {}
    sized: dict[str, dict[str, str]] = defaultdict(dict)
    for clip in clips:
        path = clip.relative_to(folder).as_posix()
        key = _RESOLUTION.sub("", path.casefold())
        if key != path.casefold() and (other := seen.setdefault(key, path)) != path:
            return [other, path]
        if (size := _SIZE.search(path.casefold())) is not None:
            sized[size[0]][_SIZE.sub("", path.casefold())] = path
    alike: dict[frozenset[str], dict[str, str]] = {}
    for paths in sized.values():
        if len(paths) > 1 and (others := alike.setdefault(frozenset(paths), paths)) is not paths:
            key = next(iter(paths))
            return [others[key], paths[key]]
    return []


def doubtful_names(folder: Path, clips: Iterable[Path]) -> list[str]:
    """Return names that look like splits, in the paths of clips that are divided without regard to them.

    The name of a folder or array counts if not all entries beside it name the same split. Clips are also called `test`
    or `trains`, so their names count only if some look like the training split and some like a held-out split.
    """
    clips = set(clips)
    beside: dict[Path, set[Path]] = defaultdict(set)
    for clip in clips:
        entry = clip
        while entry != folder and entry not in (others := beside[entry.parent]):
            others.add(entry)
            entry = entry.parent
    like: dict[tuple[str, bool], list[str]] = defaultdict(list)
    odd: list[str] = []
    for entries in beside.values():
        candidates = sorted(filter(_could_be_split, entries))  # usually few of many thousand clips
        for entry in candidates:
            for one in _likeness(entry):
                like[one].append(entry.name)
        holding = [entry for entry in candidates if entry not in clips or entry.suffix.lower() in ARRAYS]
        named = {entry.name: name.split for entry in holding if (name := split_name(entry)) and not name.is_ordinary}
        if len(named) < len(entries) or len(set(named.values())) > 1:
            odd += named
    both = [[*like[side, True], *like[side, False]] for side in SIDES if like[side, True] and like[side, False]]
    return both[0] if both else odd


def _could_be_split(path: Path) -> bool:
    """Return False if a name cannot contain a split; this needs no access to the disk."""
    name = path.name.casefold()
    return _ANY.search(name) is not None or name.partition(".")[0] in ABBREVIATED


def _likeness(path: Path) -> set[tuple[str, bool]]:
    """Return the sides at which a word of the name looks like a split, each with True if it is the training split.

    `traina` and `testb` look like splits at the start, `mytrain` and `contest` at the end.
    """
    if name := split_name(path):
        return {(side, name.split == "train") for side in SIDES}
    found = set()
    for word in _words(path)[0]:
        for text, split in SPLIT_NAMES.items():
            if len(text) > SHORT:
                ends = (word.startswith(text), word.endswith(text))
                found |= {(side, split == "train") for side, is_there in zip(SIDES, ends, strict=True) if is_there}
    return found


def _words(path: Path) -> tuple[list[str], bool]:
    """Return the words of a name, without numbers and without filler words at the end, and True if it has numbers.

    The words are empty if no word contains a split, which saves time with many thousand clips.
    """
    if _ANY.search(path.name.casefold()) is None:
        return [], False
    stem = _CAMEL.sub(" ", _SHARD.sub("", path.name if path.is_dir() else path.stem)).casefold()
    words = re.findall(r"[^\W\d_]+|\d+", stem)
    kept = [_split_word(word) for word in words if not word.isdecimal()]
    is_numbered = len(kept) < len(words)
    while kept and kept[-1] in ABOUT:
        kept.pop()
    return kept, is_numbered


def _glued(path: Path) -> Iterator[Name]:
    """Yield the possible meanings of a name in which a word begins or ends with a split."""
    words, is_numbered = _words(path)
    for place, word in enumerate(words):
        for text, split in SPLIT_NAMES.items():
            before, found, after = word.partition(text)
            if found and not (before and after):
                prefix, suffix = " ".join([*words[:place], before]), " ".join([after, *words[place + 1 :]])
                yield Name(split, prefix.strip(), suffix.strip(), is_numbered)


def _split_word(word: str) -> str:
    """Return a word without a filler word that is joined to the name of a split, as in trainvideos."""
    word = word.removesuffix("set") or word
    glued = (name for name in SPLIT_NAMES if word.startswith(name) and word[len(name) :] in ABOUT)
    return word if word in SPLIT_NAMES else next(glued, word)

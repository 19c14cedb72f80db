"""Splits by the names of folders and files, and by links and copies."""

import os
import shutil
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from e3d_deploy.data.copies import copies_among
from e3d_deploy.data.folders import find_clips, share_files
from e3d_deploy.data.form import Form
from e3d_deploy.data.masks import masks_among
from e3d_deploy.data.sources import Source, open_source
from e3d_deploy.data.split_names import doubtful_names, is_list, paired_names, unread_split
from e3d_deploy.data.splits import members_of
from e3d_deploy.data.views import scenes
from e3d_deploy.errors import ClipError

SIZE = (8, 8)


def write_clip(path: Path, value: int, *, length: int = 4) -> Path:
    """Write a clip whose pixels are its number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    clip = np.full((length, *SIZE, 1), value, np.uint8)
    clip[:, 0] = 255
    np.save(path, clip)
    return path


def opened(path: Path, split: Any, *, length: int = 4) -> Source:
    return open_source(str(path), Form(image_size=SIZE, channels=1), split=split, length=length)


def values(path: Path, split: str) -> list[int]:
    return [int(clip[:1][0, 1, 0, 0]) for clip in opened(path, split).clips]


@pytest.mark.parametrize(
    ("train", "held_out", "split"),
    [
        ("train", "val", "valid"),
        ("Training", "Validation", "valid"),
        ("TRAIN", "DEV", "valid"),
        ("train", "eval", "valid"),
        ("Train", "Test", "test"),
        ("training", "testing", "test"),
        ("train_set", "test_set", "test"),
        ("trainset", "valset", "valid"),
        ("train2017", "val2017", "valid"),
        ("frames_train", "frames_test", "test"),
        ("train-videos", "val-videos", "valid"),
        ("TrainData", "ValData", "valid"),
        ("trainvideos", "testvideos", "test"),
        ("trn", "tst", "test"),
        ("train", "validate", "valid"),
        ("trainA", "testA", "test"),
        ("train", "test_hard", "test"),
        ("traina", "testa", "test"),
        ("trainx", "valx", "valid"),
        ("mytrain", "mytest", "test"),
        ("MYTRAIN", "MYVAL", "valid"),
        ("trainlist01", "testlist01", "test"),
        ("train", "evaluation", "valid"),
        ("train_x", "evaluation_x", "valid"),
    ],
)
@pytest.mark.parametrize("above", ["", "dataset", "a/b"])
def test_folders_named_like_splits_are_the_splits(
    tmp_path: Path, train: str, held_out: str, split: str, above: str
) -> None:
    for number in range(3):
        write_clip(tmp_path / above / train / f"{number}.npy", number)
        write_clip(tmp_path / above / held_out / f"{number}.npy", 10 + number)
    assert values(tmp_path, "train") == [0, 1, 2]
    assert values(tmp_path, "valid") == values(tmp_path, "test") == [10, 11, 12]
    source = opened(tmp_path, split)
    assert source.held_out
    assert source.folders == (str(tmp_path / above / held_out),)


def test_validation_and_test_prefer_their_own(tmp_path: Path) -> None:
    for number, name in enumerate(("Train", "test", "val")):
        write_clip(tmp_path / name / "clip.npy", number)
    assert [values(tmp_path, split) for split in ("train", "valid", "test")] == [[0], [2], [1]]


def test_ucsd_pedestrians_are_read_as_published(tmp_path: Path) -> None:
    for ped in ("UCSDped1", "UCSDped2"):
        for number in range(2):
            first = 20 * int(ped[-1])
            write_clip(tmp_path / ped / "Train" / f"Train00{number}" / "clip.npy", first + number)
            write_clip(tmp_path / ped / "Test" / f"Test00{number}" / "clip.npy", first + 10 + number)
        write_clip(tmp_path / ped / "Test" / "Test000_gt" / "clip.npy", 99)
    (tmp_path / "__MACOSX").mkdir()
    write_clip(tmp_path / "__MACOSX" / "clip.npy", 99)
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.csv").write_text("1")
    (tmp_path / "README.txt").write_text("about")
    assert values(tmp_path, "train") == [20, 21, 40, 41]
    test = opened(tmp_path, "test")
    assert values(tmp_path, "test") == [30, 31, 50, 51]
    assert any("skipped ground truth: Test000_gt" in remark for remark in test.remarks)
    assert any(
        "skipped files and folders without clips: __MACOSX, labels, README.txt" in remark for remark in test.remarks
    )
    # Given directly, one split is an ordinary folder of clips.
    assert len(opened(tmp_path / "UCSDped1" / "Train", "train").clips) == 2


def test_files_may_be_named_like_splits(tmp_path: Path) -> None:
    for number, split in enumerate(("train", "valid", "test")):
        write_clip(tmp_path / f"moving-mnist-{split}.npy", number)
    assert [values(tmp_path, split) for split in ("train", "valid", "test")] == [[0], [1], [2]]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("train-00000-of-00002", "train-00001-of-00002", "validation-00000-of-00001", "test-00000-of-00001"),
         ([0, 1], [2], [3])),
        (("train_1", "train_2", "val_1", "test_1"), ([0, 1], [2], [3])),
        (("trainX", "validX", "testX"), ([0], [1], [2])),
        (("trainA", "trainB", "testA", "testB"), ([0, 1], [2, 3], [2, 3])),
        (("traina", "trainb", "testa", "testb"), ([0, 1], [2, 3], [2, 3])),
        (("xtrain", "xval", "xtest"), ([0], [1], [2])),
    ],
)  # fmt: skip
def test_files_of_splits_may_be_numbered_or_have_the_same_words(
    tmp_path: Path, names: tuple[str, ...], expected: tuple[list[int], ...]
) -> None:
    for number, name in enumerate(names):
        write_clip(tmp_path / f"{name}.npy", number)
    assert tuple(values(tmp_path, split) for split in ("train", "valid", "test")) == expected


def test_kinds_of_test_folders_go_together(tmp_path: Path) -> None:
    for number, name in enumerate(("train", "test_easy", "test_hard")):
        write_clip(tmp_path / name / "0.npy", number)
    assert [values(tmp_path, split) for split in ("train", "valid", "test")] == [[0], [1, 2], [1, 2]]


@pytest.mark.parametrize("names", [("test_night", "train_day", "c"), ("test_1", "val_1", "test_2")])
def test_names_of_splits_that_do_not_match_are_refused(tmp_path: Path, names: tuple[str, ...]) -> None:
    for name in names:
        write_clip(tmp_path / f"{name}.npy", 0)
    with pytest.raises(ClipError, match=f"{names[0]}.npy, {names[1]}.npy begin like the names of splits, but do not"):
        opened(tmp_path, "train")


@pytest.mark.parametrize(
    ("train", "held_out"),
    [
        ("seen", "unseen"),
        ("seen_classes", "unseen_classes"),
        ("entrenamiento", "prueba"),
        ("Datos_Entrenamiento", "Datos_Validación"),
        ("treino", "teste"),
        ("treinamento", "validação"),
        ("addestramento", "prova"),
        ("entraînement", "évaluation"),
        ("entrainement", "evaluation"),
        ("обучающая_выборка", "тестовая_выборка"),
        ("训练集", "测试集"),
        ("訓練データ", "テスト"),
        ("学習", "検証"),
    ],
)
@pytest.mark.parametrize("clip", ["{}/0.npy", "{}.npy", "data/{}_1/0.npy"])
def test_names_of_splits_in_unsupported_words_are_refused(tmp_path: Path, train: str, held_out: str, clip: str) -> None:
    for number, name in enumerate((train, held_out, "more")):
        write_clip(tmp_path / clip.format(name), number)
    with pytest.raises(ClipError, match="look like splits, in words that are not supported; name them train, val"):
        opened(tmp_path, "train")


@pytest.mark.parametrize(
    "names", [("prueba", "walk", "run"), ("seen", "heard", "felt"), ("val_seen", "val_unseen"), ("overseen", "unseen")]
)
def test_such_words_without_a_counterpart_are_clips(tmp_path: Path, names: tuple[str, ...]) -> None:
    for number, name in enumerate(names):
        write_clip(tmp_path / name / "0.npy", number, length=40)
    assert opened(tmp_path, "train").clips


def test_names_that_contain_a_split_are_remarked(tmp_path: Path) -> None:
    for name in ("traina", "testa", "latest"):
        write_clip(tmp_path / name / "0.npy", 0)
    remarks = opened(tmp_path, "train").remarks
    assert (
        remarks[0]
        == f"{tmp_path}: read as splits, because their names differ only in words such as train and test: testa, traina"
    )
    assert remarks[1] == f"{tmp_path}: skipped clips outside the folders of splits: latest"


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("traina/0", "testb/1", "c/2"), "traina, testb"),
        (("a_train/0", "b_test/1", "c/2"), "a_train, b_test"),
        (("kittitrain/0", "citytest/1", "c/2"), "kittitrain, citytest"),
        (("kitti_train", "cal_test", "c"), "kitti_train.npy, cal_test.npy"),
        (("ucsd_train/0", "ucsd_train/1", "clips/2"), "ucsd_train"),
        (("a_test/0", "b_val/1", "b_val/2"), "a_test, b_val"),
        (("x/a_train/0", "x/a_train/1", "y/b_test/2"), "a_train, b_test"),
    ],
)
def test_unclear_splits_are_not_held_out(tmp_path: Path, names: tuple[str, ...], said: str) -> None:
    for number, name in enumerate(names):
        write_clip(tmp_path / f"{name}.npy", number)
    sources = [opened(tmp_path, split) for split in ("train", "valid", "test")]
    assert not any(source.held_out for source in sources)
    assert sorted(len(source.clips) for source in sources) == [1, 1, 1]
    assert any(f"nothing counts as held out: {said}; name them" in remark for remark in sources[0].remarks)


@pytest.mark.parametrize(
    "names",
    [
        ("training_day_1/0", "training_day_2/1", "training_day_3/2"),
        ("latest/0", "contest/1", "trains/2"),
        ("trains/0", "cars/1", "valley/2"),
        ("evaluation/0", "valley/1", "device/2"),
        ("train_1/0", "train_1/1", "train_1/2"),
    ],
)
def test_ordinary_names_are_not_splits(tmp_path: Path, names: tuple[str, ...]) -> None:
    for number, name in enumerate(names):
        write_clip(tmp_path / f"{name}.npy", number)
    source = opened(tmp_path, "valid")
    assert (source.held_out, source.remarks) == (True, ())


@pytest.mark.parametrize(
    "names",
    [
        ("fold1/train/0", "fold1/test/1", "fold2/train/1", "fold2/test/0"),
        ("cv0_train/0", "cv0_val/1", "cv1_train/1", "cv1_val/0"),
        ("train_split1", "test_split1", "train_split2", "test_split2"),
        ("x/folds/1/train/0", "x/folds/1/test/1", "x/folds/2/train/1", "x/folds/2/test/0"),
    ],
)
def test_several_folds_are_refused(tmp_path: Path, names: tuple[str, ...]) -> None:
    for number, name in enumerate(names):
        write_clip(tmp_path / f"{name}.npy", number)
    with pytest.raises(ClipError, match=r"holds several folds \(.*; give a folder with a single fold"):
        opened(tmp_path, "train")
    for path in sorted(tmp_path.rglob("*"), reverse=True):
        if path.is_file() and names.index(path.relative_to(tmp_path).as_posix().removesuffix(".npy")) > 1:
            path.unlink()
        elif path.is_dir() and not any(path.iterdir()):
            path.rmdir()
    assert [values(tmp_path, split) for split in ("train", "test")] == [[0], [1]]


def test_a_scene_in_several_resolutions_is_refused(tmp_path: Path) -> None:
    for number, scene in enumerate(("bear", "bike", "car")):
        for level, size in enumerate(("480p", "Full-Resolution")):
            write_clip(tmp_path / size / f"{scene}.npy", 10 * level + number)
    with pytest.raises(ClipError, match=r"in several resolutions, 480p/bear.npy, Full-Resolution/bear.npy, which"):
        opened(tmp_path, "train")
    assert opened(tmp_path / "480p", "train").held_out


def test_a_scene_in_several_sizes_is_refused(tmp_path: Path) -> None:
    for number, scene in enumerate(("bear", "bike", "car")):
        for level, size in enumerate(("640x480", "320x240")):
            write_clip(tmp_path / size / f"{scene}.npy", 10 * level + number)
    with pytest.raises(ClipError, match=r"in several resolutions, .*bear.npy, .*bear.npy, which"):
        opened(tmp_path, "train")


@pytest.mark.parametrize(
    "names",
    [("walk_000p", "walk_001p", "walk_002p"), ("tile_100x100", "tile_100x300", "tile_300x100")],
)
def test_numbers_like_resolutions_are_names_of_clips(names: tuple[str, ...], tmp_path: Path) -> None:
    for number, name in enumerate(names):
        write_clip(tmp_path / f"{name}.npy", number)
    assert [len(opened(tmp_path, "train").clips), len(opened(tmp_path, "valid").clips)] == [1, 1]


def test_ordinary_names_need_no_access_to_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clips = [tmp_path / f"clip_{number}.mp4" for number in range(3)]
    with monkeypatch.context() as patch:
        patch.setattr(Path, "is_dir", lambda *_: pytest.fail("a look at the disk"))
        assert (paired_names(clips), doubtful_names(tmp_path, clips)) == ({}, [])
        assert not any(map(unread_split, clips))


def test_abbreviated_names_of_splits_count_together(tmp_path: Path) -> None:
    for number, name in enumerate(("tr", "Va", "te")):
        write_clip(tmp_path / name / "0.npy", number)
    assert [values(tmp_path, split) for split in ("train", "valid", "test")] == [[0], [1], [2]]
    for name in ("Va", "te"):
        (tmp_path / name).rename(tmp_path / f"{name}a")
    assert opened(tmp_path, "train").folders == ()


@pytest.mark.parametrize(
    "name", ["trainlist01.txt", "train.txt", "TestList.csv", "splits.json", "hair_test_split1.txt", "2017/val.txt"]
)
def test_unread_lists_of_splits_are_remarked(tmp_path: Path, name: str) -> None:
    for number in range(3):
        write_clip(tmp_path / "videos" / f"{number}.npy", number)
    (tmp_path / "lists" / name).parent.mkdir(parents=True)
    (tmp_path / "lists" / name).touch()
    source = opened(tmp_path, "test")
    assert not source.held_out
    assert any(
        f"lists of clips are not read ({Path(name).name}), so the division" in remark for remark in source.remarks
    )


@pytest.mark.parametrize(
    "name", ["train_log.txt", "test_results.csv", "latest.txt", "list.txt", "train.log", "evaluation.json"]
)
def test_other_files_are_not_lists_of_splits(name: str) -> None:
    assert not is_list(Path(name))


def test_a_split_within_another_is_refused(tmp_path: Path) -> None:
    for name in ("train/0", "train/val/1"):
        write_clip(tmp_path / f"{name}.npy", 0)
    message = "val: is named like a split, but is inside another split, train; move it next to train"
    with pytest.raises(ClipError, match=message):
        opened(tmp_path, "train")
    write_clip(tmp_path / "test" / "2.npy", 0)
    with pytest.raises(ClipError, match=message):
        opened(tmp_path, "train")


def test_a_video_called_test_is_not_a_split(tmp_path: Path) -> None:
    for number in range(3):
        write_clip(tmp_path / f"test_{number}.npy", number)
    found = [values(tmp_path, split) for split in ("train", "valid", "test")]
    assert sorted(chain.from_iterable(found)) == [0, 1, 2]


def test_a_single_training_folder_is_divided(tmp_path: Path) -> None:
    for number in range(4):
        write_clip(tmp_path / "train" / f"{number}.npy", number)
    found = [values(tmp_path, split) for split in ("train", "valid", "test")]
    assert sorted(chain.from_iterable(found)) == [0, 1, 2, 3]
    source = opened(tmp_path, "valid")
    assert source.held_out
    assert source.remarks[0] == f"{tmp_path}: holds only train, so a part of it is held out"


def test_names_of_splits_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    write_clip(tmp_path / "classes" / "train" / "0.npy", 0)
    write_clip(tmp_path / "classes" / "car" / "0.npy", 1)
    with pytest.raises(
        ClipError, match=r"train is named like a split, but there is no matching split, only other clips \(car"
    ):
        opened(tmp_path / "classes", "train")
    write_clip(tmp_path / "tests" / "test" / "0.npy", 0)
    with pytest.raises(ClipError, match=r"has no folder for training, only .*test; give that folder itself"):
        opened(tmp_path / "tests", "train")
    assert values(tmp_path / "tests", "test") == [0]
    for split in ("train", "test"):
        write_clip(tmp_path / "mixed" / "walking" / split / "0.npy", 0)
    write_clip(tmp_path / "mixed" / "running" / "0.npy", 0)
    with pytest.raises(ClipError, match="walking holds folders of splits, unlike running next to it"):
        opened(tmp_path / "mixed", "train")
    (tmp_path / "empty" / "val").mkdir(parents=True)
    write_clip(tmp_path / "empty" / "train" / "0.npy", 0)
    (tmp_path / "empty" / "val" / "labels.csv").write_text("1")
    with pytest.raises(ClipError, match="val: holds no videos, pictures or arrays"):
        opened(tmp_path / "empty", "valid")


def test_clips_outside_the_folders_of_splits_are_named(tmp_path: Path) -> None:
    for name in ("train", "test", "extra"):
        write_clip(tmp_path / name / "0.npy", 0)
    remarks = opened(tmp_path, "train").remarks
    assert remarks[0] == f"{tmp_path}: skipped clips outside the folders of splits: extra"


# Links and copies


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_a_link_does_not_leak_from_training(tmp_path: Path, link: Any) -> None:
    file = write_clip(tmp_path / "train" / "0.npy", 0)
    write_clip(tmp_path / "val" / "1.npy", 1)
    link(file, tmp_path / "val" / "2.npy")
    source = opened(tmp_path, "valid")
    assert len(source.clips) == 1
    assert source.remarks[0].startswith(f"{tmp_path}: skipped in valid, because they link to training clips")
    (tmp_path / "val" / "1.npy").unlink()
    with pytest.raises(ClipError, match="all clips to hold out are training clips too, as links or copies"):
        opened(tmp_path, "valid")


def test_each_file_counts_once(tmp_path: Path) -> None:
    for number in range(3):
        write_clip(tmp_path / "clips" / f"{number}.npy", number)
    os.symlink("0.npy", tmp_path / "clips" / "3.npy")
    os.link(tmp_path / "clips" / "1.npy", tmp_path / "clips" / "4.npy")
    os.symlink("..", tmp_path / "clips" / "up")
    found = [values(tmp_path, split) for split in ("train", "valid", "test")]
    assert sorted(chain.from_iterable(found)) == [0, 1, 2]


@pytest.mark.parametrize("again", ["{} - Copy", "copies/{}", "data (1)/{}"])
def test_each_content_counts_once(tmp_path: Path, again: str) -> None:
    for number in range(4):
        clip = write_clip(tmp_path / f"{number}.npy", number)
        copy = tmp_path / f"{again.format(number)}.npy"
        copy.parent.mkdir(exist_ok=True)
        shutil.copy(clip, copy)
    found = [values(tmp_path, split) for split in ("train", "valid", "test")]
    assert sorted(chain.from_iterable(found)) == [0, 1, 2, 3]
    first = tmp_path / f"{again.format(0)}.npy"
    others = [tmp_path / f"{again.format(number)}.npy" for number in range(1, 4)]
    said = f"{tmp_path}: skipped copies of other clips: {', '.join(map(str, [first, *others]))}"
    assert opened(tmp_path, "valid").remarks[0] == said


def test_a_copy_does_not_leak_from_training(tmp_path: Path) -> None:
    file = write_clip(tmp_path / "train" / "0.npy", 0)
    write_clip(tmp_path / "val" / "1.npy", 1)
    shutil.copy(file, tmp_path / "val" / "2.npy")
    source = opened(tmp_path, "valid")
    assert (values(tmp_path, "train"), values(tmp_path, "valid")) == ([0], [1])
    assert source.remarks[0] == (
        f"{tmp_path}: skipped in valid, because they are copies of training clips: {tmp_path / 'val' / '2.npy'}"
    )
    (tmp_path / "val" / "1.npy").unlink()
    with pytest.raises(
        ClipError, match="all clips to hold out are training clips too, as links or copies; give other clips"
    ):
        opened(tmp_path, "valid")


def test_a_copy_shares_its_file_with_the_original(tmp_path: Path) -> None:
    file, other = write_clip(tmp_path / "0.npy", 0), write_clip(tmp_path / "1.npy", 1)
    copy = shutil.copy(file, tmp_path / "copy.npy")
    assert share_files(str(file), str(copy))
    assert not share_files(str(file), str(other))


def test_a_copied_folder_of_pictures_counts_once(tmp_path: Path) -> None:
    for number in range(3):
        write_pictures(tmp_path / str(number), 50 * number)
    shutil.copytree(tmp_path / "1", tmp_path / "4")
    for number in range(4):  # the copies have other numbers, which begin elsewhere
        (tmp_path / "4" / f"{number}.png").rename(tmp_path / "4" / f"f{number + 8}.png")
    write_pictures(tmp_path / "5", 0, count=3)  # the first frames of another folder
    found = [
        int(clip[:1].max()) for split in ("train", "valid", "test") for clip in opened(tmp_path, split, length=3).clips
    ]
    assert sorted(found) == [0, 0, 50, 100]
    assert f"{tmp_path}: skipped copies of other clips: {tmp_path / '4'}" in opened(tmp_path, "train", length=3).remarks


def test_clips_of_different_sizes_are_not_read_to_find_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clips = [tmp_path / f"{number}.mp4" for number in range(20)]
    for number, clip in enumerate(clips):
        clip.write_bytes(bytes(1 + number))
    for name, sizes in (("a", (5, 6)), ("b", (5, 7)), ("c", (5, 6, 7))):
        (tmp_path / name).mkdir()
        clips.append(tmp_path / name)
        for number, size in enumerate(sizes):
            (tmp_path / name / f"{number}.png").write_bytes(bytes(size))
    taken: list[Path] = []
    open_ = Path.open
    monkeypatch.setattr(
        Path, "open", lambda path, *args, **options: taken.append(path) or open_(path, *args, **options)
    )
    assert (copies_among(clips), taken) == ({}, [])
    (tmp_path / "b" / "1.png").write_bytes(bytes(6))
    assert copies_among(clips) == {tmp_path / "b": tmp_path / "a"}
    assert {path.parent for path in taken} == {tmp_path / "a", tmp_path / "b"}


def test_only_blocks_of_clips_of_one_size_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clips = [tmp_path / f"{number}.npy" for number in range(4)]
    for number, clip in enumerate(clips):
        clip.write_bytes(bytes(500_000) + bytes([number]) + bytes(500_000))
    monkeypatch.setattr("hashlib.file_digest", lambda *_: pytest.fail("read whole"))
    assert copies_among(clips) == {}


def test_files_that_cannot_be_compared_are_not_copies(tmp_path: Path) -> None:
    clips = [tmp_path / f"{number}.mp4" for number in range(4)]
    for clip in clips[:2]:
        clip.touch()
    assert copies_among(clips) == {}


def write_pictures(folder: Path, level: int, *, count: int = 4) -> Path:
    folder.mkdir(parents=True)
    for number in range(count):
        Image.new("L", SIZE, level + number).save(folder / f"{number}.png")
    return folder


def test_pictures_that_are_not_frames_do_not_count_as_links(tmp_path: Path) -> None:
    for number, name in enumerate("abc"):
        write_pictures(tmp_path / name, 50 * number)
        for other in (".thumb.png", "0_gt.png"):
            if number == 0:
                Image.new("L", SIZE).save(tmp_path / name / other)
            else:
                os.link(tmp_path / "a" / other, tmp_path / name / other)
    found = [int(clip[:1].max()) for split in ("train", "valid", "test") for clip in opened(tmp_path, split).clips]
    assert sorted(found) == [0, 50, 100]


def test_one_frame_in_common_keeps_both_clips(tmp_path: Path) -> None:
    first, second = write_pictures(tmp_path / "train" / "a", 0), write_pictures(tmp_path / "train" / "b", 100)
    os.link(first / "0.png", second / "4.png")
    write_pictures(tmp_path / "val" / "c", 200)
    assert len(opened(tmp_path, "train").clips) == 2
    os.link(first / "1.png", tmp_path / "val" / "c" / "4.png")
    write_pictures(tmp_path / "val" / "d", 220)
    # One shared training frame excludes a held-out clip.
    assert [len(clip) for clip in opened(tmp_path, "valid").clips] == [4]


def test_a_clip_that_consists_of_links_counts_once(tmp_path: Path) -> None:
    first = write_pictures(tmp_path / "a", 0)
    (tmp_path / "b").mkdir()
    for number in range(3):
        os.symlink(first / f"{number}.png", tmp_path / "b" / f"{number}.png")
    source = opened(tmp_path, "train", length=2)
    assert source.remarks[0] == f"{tmp_path}: skipped links to other clips: {tmp_path / 'b'}"


def test_clips_that_are_divided_share_no_frame_with_training(tmp_path: Path) -> None:
    folders = [write_pictures(tmp_path / f"{number:02}", 10 * number) for number in range(20)]
    held_out = [folders[number] for number in members_of("valid", 20)]
    trained = folders[members_of("train", 20)[0]]
    os.link(trained / "0.png", held_out[0] / "4.png")
    source = opened(tmp_path, "valid")
    assert len(source.clips) == len(held_out) - 1
    assert source.remarks[0].startswith(f"{tmp_path}: skipped in valid, because they link to training clips")


def test_an_empty_folder_of_a_split_is_an_error_only_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "train").mkdir()
    write_clip(tmp_path / "val" / "0.npy", 0)
    (tmp_path / "labels").mkdir()
    with pytest.raises(
        ClipError, match=r"train: holds no videos, pictures or arrays, .*; put such files there, or give ano"
    ):
        opened(tmp_path, "train")
    assert caplog.messages == [f"{tmp_path}: skipped files and folders without clips: labels"]


def test_other_files_divided_by_split_are_skipped(tmp_path: Path) -> None:
    for number, name in enumerate(("training", "testing")):
        write_clip(tmp_path / f"{name}_videos" / "01.npy", number)
        (tmp_path / f"{name}_vol").mkdir()
        (tmp_path / f"{name}_vol" / "vol01.mat").touch()
    assert (values(tmp_path, "train"), values(tmp_path, "test")) == ([0], [1])
    assert (
        f"{tmp_path}: skipped files and folders without clips: testing_vol, training_vol"
        in opened(tmp_path, "train").remarks
    )


# Views of one scene


@pytest.mark.parametrize(
    "views",
    [
        ("{}/image_00/data/0.npy", "{}/image_01/data/0.npy", "{}/image_03/data/0.npy"),
        ("drive_{}/image_2.npy", "drive_{}/image_3.npy"),
        ("rgb/{}.npy", "flow_x/{}.npy", "flow_y/{}.npy"),
        ("{}_rgb/frames.npy", "{}_depth/frames.npy"),
        ("left/{}/0.npy", "right/{}/0.npy"),
        ("scene_{}/cam0.npy", "scene_{}/cam1.npy"),
        ("CAM_FRONT/{}.npy", "CAM_FRONT_LEFT/{}.npy"),
        ("v{}_left.npy", "v{}_right.npy"),
        ("v{}-L.npy", "v{}-R.npy"),
        ("depth_{}.npy", "ir_{}.npy"),
        ("v{}_cam1.npy", "v{}_cam2.npy"),
        ("videos/v{}.npy", "frames/v{}.npy"),
        ("GX01004{}.npy", "GX02004{}.npy"),
        ("GOPR004{}.npy", "GP01004{}.npy", "GP02004{}.npy"),
    ],
)
def test_views_of_a_scene_stay_in_one_split(tmp_path: Path, views: tuple[str, ...]) -> None:
    for number in range(4):
        for place, view in enumerate(views):
            write_clip(tmp_path / view.format(number), 10 * number + place)
    sources = [opened(tmp_path, split) for split in ("train", "valid", "test")]
    numbers = [[int(clip[:1][0, 1, 0, 0]) // 10 for clip in source.clips] for source in sources]
    assert sorted(chain.from_iterable(set(found) for found in numbers)) == [0, 1, 2, 3]
    assert [len(found) for found in numbers] == [2 * len(views), len(views), len(views)]
    assert all(source.held_out for source in sources)
    said = f"{tmp_path}: divided by scene into 4 groups, because names suggest views of one scene: "
    assert any(remark.startswith(said) for remark in sources[0].remarks)


@pytest.mark.parametrize("other", ["v2.mp4", "V2.MKV", "v2", "frames/v2", "v2/rgb", "v2.npy"])
def test_a_scene_in_several_formats_is_one(other: str) -> None:
    clips = [Path("x", name) for name in ("v1.avi", "v2.avi", other)]
    assert scenes(Path("x"), clips) == [clips[:1], clips[1:]]


def test_fewer_than_three_scenes_are_divided_by_time(tmp_path: Path) -> None:
    for number, name in enumerate(("left", "right", "depth")):
        write_clip(tmp_path / f"{name}.npy", number, length=20)
    sources = [opened(tmp_path, split, length=2) for split in ("train", "valid", "test")]
    assert [[len(clip) for clip in source.clips] for source in sources] == [[16] * 3, [2] * 3, [2] * 3]
    assert all(source.held_out for source in sources)
    assert sources[1].remarks[0] == (
        f"{tmp_path}: divided by time, because names suggest views of one scene: depth.npy, left.npy, right.npy"
    )
    assert not opened(tmp_path, "valid", length=5).held_out  # too short to be divided


def test_views_in_a_single_training_folder_stay_together(tmp_path: Path) -> None:
    for number in range(3):
        for place, side in enumerate(("left", "right")):
            write_clip(tmp_path / "train" / side / f"{number}.npy", 10 * number + place)
    found = [{value // 10 for value in values(tmp_path, split)} for split in ("train", "valid", "test")]
    assert sorted(chain.from_iterable(found)) == [0, 1, 2]
    assert opened(tmp_path, "valid").folders == (str(tmp_path / "train"),)


@pytest.mark.parametrize(
    "names",
    [
        tuple(f"v_ApplyEyeMakeup_g0{group}_c0{clip}.avi" for group in range(1, 4) for clip in range(1, 4)),
        tuple(f"{kind}/v_{kind}_g01_c0{clip}.avi" for kind in ("Archery", "Bowling") for clip in range(1, 5)),
        tuple(f"person{person:02}_{kind}_d{d}_uncomp.avi" for person in (1, 2) for kind in ("boxing", "walking")
              for d in (1, 2, 3, 4)),
        tuple(f"{kind}/person{person:02}_{kind}_d1" for kind in ("boxing", "walking") for person in range(1, 5)),
        tuple(f"{kind}/{clip:02}.mp4" for kind in ("turn_left", "turn_right", "wave") for clip in range(3)),
        tuple(f"image_{number:02}.mp4" for number in range(4, 20)),
        ("video_1.mp4", "video_2.mp4", "clip_1.mp4", "clip_2.mp4"),
        ("flower.mp4", "flow.er.mp4", "ir_on.mp4", "air.mp4", "aleft.mp4", "left_handed_1.mp4", "bandage1.mp4"),
        ("GX010044.MP4", "GX010045.MP4", "GH010044.MP4", "GOPR0044.MP4"),
        ("depth/a.mp4", "rgb/b.mp4", "left/c.mp4", "cam0/d.mp4"),
    ],
)  # fmt: skip
def test_clips_of_several_scenes_are_not_views(names: tuple[str, ...]) -> None:
    assert scenes(Path("x"), [Path("x", name) for name in names]) == [[Path("x", name)] for name in names]


# Masks


def test_masks_next_to_frames_are_skipped(tmp_path: Path) -> None:
    for number, name in enumerate(("v0", "v1", "v2")):
        folder = write_pictures(tmp_path / name, 50 * number)
        for end in ("mask", "seg", "label", "labels", "GT"):
            Image.new("L", SIZE, 255).save(folder / f"0_{end}.png")
    source = opened(tmp_path, "train")
    assert [len(clip) for clip in source.clips] == [4]
    assert any("skipped ground truth: v0/0_GT.png, v0/0_label.png" in remark for remark in source.remarks)


@pytest.mark.parametrize(
    ("frames", "masks"),
    [("frames", "masks"), ("JPEGImages/480p", "Annotations/480p"), ("images", "labels"), ("a", "a_seg"),
     ("color", "ground_truth"), ("rgb", "GroundTruth"), ("rgb", "segmentation"), ("leftImg8bit", "gtFine")],
)  # fmt: skip
@pytest.mark.parametrize("inside", [("v0", "v1", "v2"), ("train", "val")])
def test_folders_of_masks_are_clips_only_if_given(
    tmp_path: Path, frames: str, masks: str, inside: tuple[str, ...]
) -> None:
    for number, name in enumerate(inside):
        write_pictures(tmp_path / frames / name, 10 * number)
        write_pictures(tmp_path / masks / name, 200)
    found = [value for split in ("train", "valid", "test") for value in values(tmp_path, split)]
    assert sorted(set(found)) == [10 * number for number in range(len(inside))]
    remarks = opened(tmp_path, "train").remarks
    assert f"{tmp_path}: skipped ground truth: {masks.split('/', maxsplit=1)[0]}" in remarks
    assert values(tmp_path / masks.split("/", maxsplit=1)[0], "train") == [200]


@pytest.mark.parametrize(
    "name",
    ["gtFine", "GTMasks2", "gt_frames", "ground-truth", "label_color", "SegmentationClass", "flow_viz", "disp_occ_0",
     "obj_map", "train_masks", "Annotations.2", "wearing_mask", "mask1", "pixelLabels"],
)  # fmt: skip
def test_masks_are_recognised_by_whole_words_next_to_their_clips(name: str) -> None:
    entries = dict.fromkeys(map(Path, (name, "frames", "v1")), True)
    assert masks_among(entries, beside_pictures=False) == ({Path(name)}, set())


@pytest.mark.parametrize("name", ["unlabeled", "masked", "flow", "disposal", "object_map", "gtx", "segment_1"])
def test_longer_words_that_contain_mask_name_clips(name: str) -> None:
    assert masks_among({Path(name): True, Path("frames"): True}, beside_pictures=False) == (set(), set())


@pytest.mark.parametrize(
    ("name", "others"),
    [("Ford GT", ["Ford Focus", "Audi"]), ("GT3", ["Corvette", "Mustang"]), ("wearing mask", ["waving", "running"]),
     ("GT 500", ["Mustang"]), ("no_mask", ["hat"]), ("care_label", ["shoe"]),
     ("mask making", ["pottery"])],
)  # fmt: skip
def test_classes_that_are_named_like_masks_stay_clips(name: str, others: list[str], tmp_path: Path) -> None:
    for number, one in enumerate((name, *others)):
        write_clip(tmp_path / one / "clip.npy", number)
    remarks: list[str] = []
    assert len(find_clips(tmp_path, remarks.append)) == 1 + len(others)
    assert f"{tmp_path}: read as clips, although named like ground truth: {name}; move them elsewhere" in remarks[0]


def test_mask_is_a_class_next_to_no_mask() -> None:
    entries = dict.fromkeys(map(Path, ("mask", "no_mask")), True)
    assert masks_among(entries, beside_pictures=False) == (set(), set(entries))


@pytest.mark.parametrize(
    ("mask", "owner", "is_folder"),
    [("Test001_gt", "Test001", True), ("GT3", "Frames3", True), ("video1_mask_2", "video1", True),
     ("label_2", "image_2", True), ("a_mask.mp4", "a.mp4", False), ("bear_ground_truth", "bear", True),
     ("train_masks", "train_images", True), ("masks_v2", "images_v2", True)],
)  # fmt: skip
def test_masks_are_recognised_by_their_clips(mask: str, owner: str, is_folder: bool) -> None:
    entries = dict.fromkeys(map(Path, (mask, owner, f"other{Path(owner).suffix}")), is_folder)
    assert masks_among(entries, beside_pictures=False)[0] == {Path(mask)}


def test_pictures_named_like_masks_are_frames_without_others(tmp_path: Path) -> None:
    for number in range(4):
        (tmp_path / "masks").mkdir(exist_ok=True)
        Image.new("L", SIZE, number).save(tmp_path / "masks" / f"{number}_mask.png")
    assert [len(clip) for clip in opened(tmp_path / "masks", "train", length=1).clips] == [4]

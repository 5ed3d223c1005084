"""Data sets from everywhere: TFDS by name, folders, archives, Python objects; one set of rules."""

from __future__ import annotations

import hashlib
import io
import logging
import sys
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
import tfds_folder
from PIL import Image

from jaxkd import data
from jaxkd.config import TrainConfig
from jaxkd.data import cifar, collection
from jaxkd.data.augment import CropFlip
from jaxkd.data.datasets import measure
from jaxkd.data.host_views import CentralCrop


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def pictures(count: int, side: int | None = 12, channels: int = 3, classes: int = 3, seed: int = 0) -> list:
    """Examples of noise; of sizes that differ if there is no side."""
    rng = np.random.default_rng(seed)
    sizes = [(side or 9 + i, side or 12 + i % 5) for i in range(count)]
    return [
        {"image": rng.integers(0, 256, (*size, channels), np.uint8), "label": i % classes}
        for i, size in enumerate(sizes)
    ]


def features(side: int | None = 12, channels: int = 3, classes: int = 3) -> dict[str, Any]:
    return {
        "image": tfds.features.Image(shape=(side, side, channels)),
        "label": tfds.features.ClassLabel(num_classes=classes),
    }


def in_memory(dataset: data.Dataset, name: str) -> data.Split:
    split = dataset.splits[name]
    assert isinstance(split, data.Split)
    return split


# TensorFlow Datasets


def test_a_prepared_set_of_any_name_is_read_by_what_it_says_of_itself(tmp_path: Path) -> None:
    train, test = pictures(20), pictures(7, seed=1)
    tfds_folder.write(tmp_path, "tiny_pictures", features(), {"train": train, "test": test})
    dataset = data.load("tiny_pictures", data_dir=tmp_path)
    assert (dataset.num_classes, dataset.image_shape) == (3, (12, 12, 3))
    for name, examples in (("train", train), ("test", test)):
        split = in_memory(dataset, name)
        np.testing.assert_array_equal(split.images, [example["image"] for example in examples])
        assert split.labels.tolist() == [example["label"] for example in examples]
    assert dataset.mean == pytest.approx(in_memory(dataset, "train").images.mean((0, 1, 2)) / 255, abs=1e-4)
    assert dataset.augmentation == CropFlip(padding=1, flip=False)
    assert data.load("tiny_pictures", data_dir=tmp_path).digest == dataset.digest  # of the copy that is kept
    assert "tensorflow" not in sys.modules


def test_a_set_whose_images_differ_in_size_is_resized(tmp_path: Path) -> None:
    train = pictures(10, None, channels=1)
    tfds_folder.write(
        tmp_path, "odd_sizes", features(None, 1), {"train": train, "validation": pictures(3, None, 1)}
    )
    with pytest.raises(ValueError, match=r"images of odd_sizes differ in size; give .* --image-size"):
        data.load("odd_sizes", data_dir=tmp_path)
    dataset = data.load("odd_sizes", data_dir=tmp_path, image_size=8)
    assert dataset.image_shape == (8, 8, 1)
    assert len(dataset.splits["test"]) == 3  # the validation split, since there is no other
    wanted = CentralCrop(8, resize=8)(train[4]["image"])
    np.testing.assert_array_equal(in_memory(dataset, "train").images[4], wanted)
    only_test = data.load("odd_sizes", data_dir=tmp_path, image_size=8, splits=("test",))
    assert (only_test.mean, only_test.std) == (dataset.mean, dataset.std)  # of training images all the same


def test_a_set_without_a_test_split_has_a_fifth_held_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train = pictures(20)
    tfds_folder.write(tmp_path, "train_alone", features(), {"train": train})
    with caplog.at_level(logging.WARNING, "jaxkd"):
        dataset = data.load("train_alone", data_dir=tmp_path)
    assert "train_alone has no test split: a fifth of its training images" in caplog.text
    kept, held = in_memory(dataset, "train").images, in_memory(dataset, "test").images
    assert (len(kept), len(held)) == (16, 4)
    both = {image.tobytes() for image in [*kept, *held]}
    assert both == {example["image"].tobytes() for example in train}
    alone = data.load("train_alone", data_dir=tmp_path, splits=("test",))
    np.testing.assert_array_equal(in_memory(alone, "test").images, held)


def test_hidden_test_labels_are_not_taken_for_labels(tmp_path: Path) -> None:
    hidden = [{**example, "label": -1} for example in pictures(4)]
    splits = {"train": pictures(6), "validation": pictures(5), "test": hidden}
    tfds_folder.write(tmp_path, "hidden", features(), splits)
    assert len(data.load("hidden", data_dir=tmp_path).splits["test"]) == 5


def test_the_label_is_what_the_set_is_supervised_with(tmp_path: Path) -> None:
    two = {**features(), "coarse": tfds.features.ClassLabel(num_classes=2)}
    examples = [{**example, "coarse": 1} for example in pictures(6)]
    tfds_folder.write(
        tmp_path, "two_labels", two, {"train": examples, "test": examples}, supervised=("image", "coarse")
    )
    assert data.load("two_labels", data_dir=tmp_path).num_classes == 2
    tfds_folder.write(tmp_path, "unsaid", two, {"train": examples, "test": examples}, supervised=None)
    with pytest.raises(ValueError, match=r"unsaid is not a set .* classes .*coarse.*data\.from_examples"):
        data.load("unsaid", data_dir=tmp_path)


def test_sixteen_bits_are_refused_with_the_reason(tmp_path: Path) -> None:
    deep = {**features(), "image": tfds.features.Image(shape=(12, 12, 1), dtype=np.uint16)}
    tfds_folder.write(tmp_path, "deep", deep, {"train": [], "test": []})
    with pytest.raises(ValueError, match=r"image of deep has 16 bits a channel, and images are 8 bits here"):
        data.load("deep", data_dir=tmp_path)
    folder = write_folder(tmp_path / "pictures", {"train/a": 2, "train/b": 2})
    Image.fromarray(np.zeros((12, 12), np.uint16)).save(folder / "train" / "a" / "9.png")
    with pytest.raises(ValueError, match=r"9\.png has 16 bits a channel"):
        data.load(f"folder:{folder}")
    images, labels = np.zeros((2, 4, 4, 1), np.uint16), np.array([0, 1])
    with pytest.raises(ValueError, match=r"uint16 .*; of 16 bits, take the upper 8 with"):
        data.from_arrays((images, labels), (images, labels))


def test_names_of_tfds_are_known_without_a_network(tmp_path: Path) -> None:
    for name in ("svhn_cropped", "stl10", "tf_flowers", "eurosat/rgb"):
        data.require_known(name)
        with pytest.raises(FileNotFoundError, match=r"no split 'train' of .*--data-dir"):
            data.load(name, data_dir=tmp_path)
    with pytest.raises(ValueError, match=r'unknown data set "svhn_croped"; did you mean "svhn_cropped"\?'):
        data.require_known("svhn_croped")
    tfds_folder.write(tmp_path, "mine", features(), {"train": pictures(2)})
    data.require_known("mine", tmp_path)


def test_sets_that_tfds_knows_are_read_by_their_names(tmp_path: Path) -> None:
    """Noise in the features that the stock code declares: texts beside the image, and configurations."""
    tfds_folder.write_stock(tmp_path, "svhn_cropped", {"train": 12, "test": 4, "extra": 2})
    dataset = data.load("svhn_cropped", data_dir=tmp_path)
    assert (dataset.num_classes, dataset.image_shape) == (10, (32, 32, 3))
    assert [len(split) for split in dataset.splits.values()] == [12, 4]
    tfds_folder.write_stock(tmp_path, "eurosat/rgb", {"train": 10})
    assert data.load("eurosat/rgb", data_dir=tmp_path, image_size=32).image_shape == (32, 32, 3)


def test_a_large_set_is_streamed_and_gives_the_same_pixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tfds_folder.write(tmp_path, "sizes", features(None), {"train": pictures(11, None)})
    small = data.load("sizes", data_dir=tmp_path, image_size=8)
    monkeypatch.setattr(collection, "IN_MEMORY_BYTES", 100)
    large = data.load("sizes", data_dir=tmp_path, image_size=8)
    for name in ("train", "test"):
        split = large.splits[name]
        assert isinstance(split, data.StreamedSplit)
        images, labels = next(split.batches(np.arange(len(split))[None], epoch=1))
        np.testing.assert_array_equal(images, in_memory(small, name).images)
        np.testing.assert_array_equal(labels, in_memory(small, name).labels)
    assert (large.mean, large.augmentation) == (small.mean, small.augmentation)
    other = data.load("sizes", data_dir=tmp_path, image_size=9)
    assert large.digest != other.digest
    held = collection.hold_out(large, 0.25)
    wanted = collection.hold_out(small, 0.25)
    images, _ = next(held.splits["test"].batches(np.arange(len(held.splits["test"]))[None]))  # type: ignore[union-attr]
    np.testing.assert_array_equal(images, in_memory(wanted, "test").images)


def test_resized_crops_are_imagenets_recipe(tmp_path: Path) -> None:
    tfds_folder.write(tmp_path, "sizes", features(None), {"train": pictures(6, None)})
    dataset = data.load("sizes", data_dir=tmp_path, image_size=7, resized_crop=True)
    train = dataset.splits["train"]
    assert isinstance(train, data.StreamedSplit)
    first, again, later = (
        next(train.batches(np.array([[0, 1]]), seed=0, epoch=epoch))[0] for epoch in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != later).any()
    assert train.eval_view == CentralCrop(7, resize=8)
    assert dataset.augmentation == CropFlip(padding=0, flip=False)


# Any data set at another size


def test_known_sets_are_resized_with_their_augmentation() -> None:
    digits = data.load("digits", image_size=16)
    assert digits.image_shape == (16, 16, 1)
    assert digits.augmentation == CropFlip(padding=2, flip=False)
    assert digits.mean == data.load("digits").mean
    assert TrainConfig(image_size=16).load(("test",)).image_shape == (16, 16, 1)


# Folders


def write_folder(root: Path, counts: Mapping[str, int], side: int | None = 12, grey: bool = False) -> Path:
    """Pictures of noise, PNG and JPEG in turn, in folders such as "train/cat"."""
    for number, (name, count) in enumerate(counts.items()):
        folder = root / name
        folder.mkdir(parents=True)
        for i, example in enumerate(pictures(count, side, 1 if grey else 3, seed=number)):
            image = example["image"][..., 0] if grey else example["image"]
            Image.fromarray(image).save(folder / (f"{i}.png" if i % 2 == 0 else f"{i}.JPG"))
    return root


def test_a_folder_a_class(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "pets", {"train/dog": 4, "train/cat": 3, "test/cat": 2, "test/dog": 1})
    (root / "train" / "cat" / ".DS_Store").write_text("")
    (root / "train" / "cat" / "notes.txt").write_text("")
    dataset = data.load(f"folder:{root}")
    assert (dataset.name, dataset.num_classes, dataset.image_shape) == ("pets", 2, (12, 12, 3))
    train = in_memory(dataset, "train")
    assert train.labels.tolist() == [0, 0, 0, 1, 1, 1, 1]
    np.testing.assert_array_equal(train.images[0], np.asarray(Image.open(root / "train" / "cat" / "0.png")))
    np.testing.assert_array_equal(train.images[1], np.asarray(Image.open(root / "train" / "cat" / "1.JPG")))
    assert in_memory(dataset, "test").labels.tolist() == [0, 0, 1]
    assert TrainConfig(data=f"folder:{root}").folder.name == "pets-resnet20-seed0"


def test_folders_without_a_test_split_have_a_fifth_held_out(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "pets", {"a": 6, "b": 4}, grey=True)
    dataset = data.load(f"folder:{root}")
    assert (len(dataset.splits["train"]), len(dataset.splits["test"])) == (8, 2)
    assert dataset.image_shape == (12, 12, 1)
    assert data.load(f"folder:{root}").digest == dataset.digest


def test_kept_copies_have_the_numbers_of_todays_classes(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "pets", {"train/cat": 2, "train/dog": 2, "test/dog": 2})
    assert in_memory(data.load(f"folder:{root}"), "test").labels.tolist() == [1, 1]
    write_folder(root, {"train/bird": 2})
    assert in_memory(data.load(f"folder:{root}"), "test").labels.tolist() == [2, 2]


def test_links_within_a_class_are_followed_and_hidden_folders_are_not_read(tmp_path: Path) -> None:
    root = write_folder(
        tmp_path / "pets", {"train/cat": 2, "train/dog": 1, "train/dog/.ipynb_checkpoints": 3}
    )
    more = write_folder(tmp_path / "more", {"dogs": 4})
    (root / "train" / "dog" / "more").symlink_to(more / "dogs")
    (more / "dogs" / "around").symlink_to(root / "train" / "dog")
    (root / "train" / "dog" / "again").symlink_to(more / "dogs")
    counts = [
        np.bincount(in_memory(data.load(f"folder:{root}"), name).labels, minlength=2)
        for name in ("train", "test")
    ]
    assert sum(counts).tolist() == [2, 1 + 4 + 4]  # "around" leads to a folder that it lies in


def test_pictures_of_many_kinds_become_colour_of_one_size(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "mixed", {"train/a": 3, "train/b": 3, "test/a": 2}, side=None)
    rng = np.random.default_rng(0)
    grey = Image.fromarray(rng.integers(0, 256, (20, 20), np.uint8))
    with_alpha = Image.fromarray(rng.integers(0, 256, (9, 9, 4), np.uint8))
    for number, image in enumerate([grey, grey.convert("P"), with_alpha, grey.convert("1")]):
        image.save(root / "train" / "b" / f"x{number}.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: rows are columns
    tall = Image.fromarray(np.repeat(np.arange(16, dtype=np.uint8)[None] * 16, 8, 0))
    tall.save(root / "test" / "a" / "tall.jpg", exif=exif, quality=95)
    with pytest.raises(ValueError, match=r"differ in size \(from 9 to 20 high, 9 to 20 wide\); give"):
        data.load(f"folder:{root}")
    dataset = data.load(f"folder:{root}", image_size=8)
    images = in_memory(dataset, "train").images
    assert images.shape == (10, 8, 8, 3)
    wanted = CentralCrop(8, resize=8)(np.repeat(np.asarray(grey)[..., None], 3, -1))
    np.testing.assert_array_equal(images[6], wanted)
    turned = in_memory(dataset, "test").images[2].astype(int)
    assert (np.ptp(turned, axis=0) > np.ptp(turned, axis=1).max()).all()


def test_folders_that_do_not_fit_say_why(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no folder .*absent"):
        data.load(f"folder:{tmp_path / 'absent'}")
    one = write_folder(tmp_path / "one", {"a": 2})
    with pytest.raises(
        ValueError, match=r"a folder of pictures for each class, two at least, and it holds a"
    ):
        data.load(f"folder:{one}")
    new = write_folder(tmp_path / "new", {"train/a": 2, "train/b": 2, "val/c": 1, "val/a": 1})
    with pytest.raises(ValueError, match=r"classes that the training images have not: c"):
        data.load(f"folder:{new}")
    other = write_folder(tmp_path / "other", {"a": 2, "b": 2})
    (other / "a" / "x.webp").write_bytes(b"RIFF")
    with pytest.raises(ValueError, match=r"holds 1 pictures that are not PNG or JPEG, such as .*x\.webp"):
        data.load(f"folder:{other}")
    damaged = write_folder(tmp_path / "damaged", {"a": 2, "b": 2})
    whole = (damaged / "a" / "0.png").read_bytes()
    (damaged / "a" / "0.png").write_bytes(whole[:200])
    with pytest.raises(ValueError, match=r"0\.png is damaged .*replace or remove it"):
        data.load(f"folder:{damaged}")
    pixels = whole.index(b"IDAT")  # their chunk is cut, and what follows is none
    cut = (20).to_bytes(4, "big") + whole[pixels : pixels + 24]
    (damaged / "a" / "0.png").write_bytes(
        whole[: pixels - 4] + cut + bytes([0] * 7 + [4, 200, 1, 2, 3] + [0] * 9)
    )
    with pytest.raises(ValueError, match=r"0\.png is damaged .*replace or remove it"):
        data.load(f"folder:{damaged}")
    (damaged / "a" / "0.png").write_bytes(b"<html>")
    with pytest.raises(ValueError, match=r"0\.png cannot be read as PNG or JPEG"):
        data.load(f"folder:{damaged}")
    with pytest.raises(ValueError, match="--data-dir is for TensorFlow Datasets, but --data folder:"):
        TrainConfig(data=f"folder:{other}", data_dir=tmp_path)


# CIFAR's archives


def pickled(images: np.ndarray, labels: np.ndarray, key: str) -> bytes:
    """What Python 2 wrote: a dictionary with texts of bytes, an array that is made by a function, lists."""

    def text(value: bytes) -> bytes:
        short = len(value) < 256
        size = len(value).to_bytes(1 if short else 4, "little")
        return (b"U" if short else b"T") + size + value + b"q\x01"

    def integers(values: np.ndarray) -> bytes:
        return b"](" + b"".join(b"K" + bytes([value]) for value in values) + b"e"

    names = b"](" + b"".join(text(b"a_%d.png" % i) for i in range(len(labels))) + b"e"
    shape = b"K" + bytes([len(images)]) + b"M\x00\x0c\x86"
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + text(b"b") + b"\x87R"
    array += b"(K\x01" + shape + b"cnumpy\ndtype\n" + text(b"u1") + b"K\x00K\x01\x87R\x89"
    array += text(images.tobytes()) + b"tb"
    entries = [
        (b"filenames", names),
        (b"coarse_labels", integers(labels[::-1])),
        (key.encode(), integers(labels)),
    ]
    body = b"".join(text(name) + value for name, value in [*entries, (b"data", array)])
    return b"\x80\x02}q\x00(" + body + b"u."


def write_archive(folder: Path, name: str, version: int, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A small archive of the authors' layout; returns pixels and labels by split."""
    about = cifar.ARCHIVES[name][version]
    rng = np.random.default_rng(0)
    wanted: dict[str, Any] = {}
    with tarfile.open(folder / about.file, "w:gz") as archive:
        for split, members in about.members.items():
            for member in members:
                images = rng.integers(0, 256, (20, 3072), np.uint8)
                labels = rng.integers(0, 10, 20, np.uint8)
                coarse = [] if name == "cifar10" else [labels[::-1, None]]
                contents = np.hstack([*coarse, labels[:, None], images]).tobytes()
                if version == 1:
                    contents = pickled(images, labels, "labels" if name == "cifar10" else "fine_labels")
                entry = tarfile.TarInfo(member)
                entry.size = len(contents)
                archive.addfile(entry, io.BytesIO(contents))
                before = wanted.get(split, (np.zeros((0, 3072), np.uint8), []))
                wanted[split] = np.concatenate([before[0], images]), [*before[1], *labels.tolist()]
    md5 = hashlib.md5((folder / about.file).read_bytes()).hexdigest()
    mean = tuple(wanted["train"][0].reshape(-1, 3, 1024).mean((0, 2)) / 255)
    small = about._replace(md5=md5, records={"train": 20, "test": 20}, mean=mean)
    monkeypatch.setitem(cifar.ARCHIVES, name, (small,))
    return wanted


@pytest.mark.parametrize("version", [0, 1], ids=["binary", "python"])
@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifars_own_archives_are_read(
    tmp_path: Path, name: str, version: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = write_archive(tmp_path, name, version, monkeypatch)
    dataset = data.load(name, data_dir=tmp_path)
    for split, (pixels, labels) in wanted.items():
        read = in_memory(dataset, split)
        assert read.labels.tolist() == labels
        np.testing.assert_array_equal(read.images.transpose(0, 3, 1, 2).reshape(-1, 3072), pixels)
    assert dataset.num_classes == (10 if name == "cifar10" else 100)
    assert dataset.augmentation == CropFlip(padding=4, flip=True)


def test_archives_that_are_not_the_authors_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_archive(tmp_path, "cifar100", 0, monkeypatch)
    (about,) = cifar.ARCHIVES["cifar100"]
    monkeypatch.setitem(cifar.ARCHIVES, "cifar100", (about._replace(mean=(0.1, 0.1, 0.1)),))
    with pytest.raises(ValueError, match=r"was not read rightly: the mean is"):
        data.load("cifar100", data_dir=tmp_path)
    path = tmp_path / "cifar-100-binary.tar.gz"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(ValueError, match=r"damaged or another file: its MD5 is .*; download it again"):
        data.load("cifar100", data_dir=tmp_path)


def test_nothing_in_the_version_for_python_is_executed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evil = (
        b"cos\nsystem\n"
        + b"U"
        + bytes([len(str(tmp_path)) + 12])
        + f"touch {tmp_path}/owned".encode()
        + b"\x85R."
    )
    with pytest.raises(ValueError, match="cannot reshape"):
        cifar._pickled("labels")(evil, 20)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    ("split", "off"),
    [("test", 3e-3), pytest.param("train", 1e-3, marks=pytest.mark.slow)],  # of CIFAR-10 it is 2e-2 off
)
def test_the_mean_that_is_looked_for_is_cifars(shared_data: Path, split: str, off: float) -> None:
    dataset = data.load("cifar100", data_dir=shared_data / "tfds", splits=(split,))
    mean, _ = measure(in_memory(dataset, split).images)
    assert np.allclose(mean, cifar.ARCHIVES["cifar100"][0].mean, atol=off)


# Python objects


class ClassLabel:
    """As Hugging Face and TFDS call it."""

    num_classes = 4


class Column:
    """A stand-in for `datasets.Dataset`: length, rows by index, columns with types."""

    _fingerprint = "abc"

    def __init__(self, rows: list[dict[str, Any]], pillow: bool = True) -> None:
        self.rows = rows
        self.features = {"img": type("Image", (), {})(), "fine": ClassLabel(), "other": object()}

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.rows[index]
        return {"img": Image.fromarray(row["image"]), "fine": row["label"], "other": "text"}


def test_objects_with_the_protocol_of_hugging_face_are_read() -> None:
    train, test = pictures(9), pictures(5, seed=1)
    dataset = data.from_examples({"train": Column(train), "validation": Column(test)}, name="hub")
    assert (dataset.name, dataset.num_classes, dataset.image_shape) == ("hub", 4, (12, 12, 3))
    np.testing.assert_array_equal(in_memory(dataset, "train").images, [row["image"] for row in train])
    assert in_memory(dataset, "test").labels.tolist() == [row["label"] for row in test]


def test_objects_without_types_are_read_by_the_usual_names() -> None:
    rows = pictures(10, channels=1)
    dataset = data.from_examples({"train": rows})
    assert (dataset.num_classes, dataset.image_shape, len(dataset.splits["test"])) == (3, (12, 12, 1), 2)
    assert list(data.from_examples({"validation": rows}).splits) == ["test"]
    resized = data.from_examples({"train": pictures(10, None)}, image_size=6)
    assert resized.image_shape == (6, 6, 3)


def test_objects_that_do_not_fit_say_why() -> None:
    rows = pictures(6)
    for bad, error, message in (
        ({"train": iter(rows)}, TypeError, r"must have a length .*streaming=False"),
        ({"train": []}, ValueError, "at least one example"),
        ({}, ValueError, 'at least "train" or "test"'),
        ({"train": [{"picture": 1, "label": 0}]}, ValueError, "say with image= which column is the image"),
        ({"train": [{**row, "label": "cat"} for row in rows]}, ValueError, "must be a class number .*'cat'"),
        ({"train": [{**row, "image": row["image"] / 255} for row in rows]}, ValueError, "must be uint8"),
        ({"train": [{**row, "label": row["label"] + 1} for row in rows]}, ValueError, "pass labels - 1; or"),
        ({"train": [*rows, *pictures(1, 5)]}, ValueError, "differ in size; give"),
    ):
        with pytest.raises(error, match=message):
            data.from_examples(bad)
    pairs = [(row["image"], row["label"]) for row in rows]
    for wrong, message in (
        (rows, "must be a mapping, such as"),
        ({"train": pairs}, "must be mappings with an"),
    ):
        with pytest.raises(TypeError, match=message):
            data.from_examples(wrong)
    with pytest.raises(ValueError, match=r"label of example 2 is 2, and num_classes=2 admits 0 to 1"):
        data.from_examples({"train": rows, "test": rows}, num_classes=2)


def test_a_mean_or_a_deviation_alone_is_taken() -> None:
    splits = {"train": pictures(6), "test": pictures(3)}
    measured = data.from_examples(splits)
    half = (0.5, 0.5, 0.5)
    with_mean, with_std = data.from_examples(splits, mean=half), data.from_examples(splits, std=half)
    assert (with_mean.mean, with_mean.std) == (half, measured.std)
    assert (with_std.mean, with_std.std) == (measured.mean, half)
    assert data.from_examples(splits, mean=np.array(half), std=half).digest == (
        data.from_examples(splits, mean=half, std=half).digest
    )
    with pytest.raises(ValueError, match=r"must be those of pixels in \[0, 1\].*divide those"):
        data.from_examples(splits, mean=(125, 124, 123), std=(60, 60, 60))


def test_hidden_labels_of_a_split_are_not_counted() -> None:
    hidden = [{**row, "label": -1} for row in pictures(3)]
    dataset = data.from_examples({"train": pictures(6), "validation": pictures(4), "test": hidden})
    assert (dataset.num_classes, len(dataset.splits["test"])) == (3, 4)
    with pytest.raises(ValueError, match="labels must be class numbers from 0, got -1"):
        data.from_examples({"train": hidden})


def test_options_of_reading_are_refused_with_data_that_are_read() -> None:
    dataset = data.from_examples({"train": pictures(6), "test": pictures(3)})
    with pytest.raises(ValueError, match=r"image_size, resized_crop: only for data that are read by name"):
        TrainConfig(image_size=16, resized_crop=True).load(given=dataset)


def test_a_streamed_object_is_identified_by_what_it_says_or_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collection, "IN_MEMORY_BYTES", 100)
    digests = {
        data.from_examples({"train": rows}).splits["train"].digest
        for rows in (pictures(6), pictures(6), pictures(6, seed=1), pictures(7))
    }
    assert len(digests) == 3
    assert "abc" in data.from_examples({"train": Column(pictures(6))}).splits["train"].digest


# Labels


def test_labels_that_do_not_begin_with_0_or_have_gaps_are_explained() -> None:
    images = np.zeros((4, 8, 8, 3), np.uint8)

    def load(labels: list[int], **options: Any) -> int:
        pair = images, np.array(labels)
        return data.from_arrays(pair, pair, **options).num_classes

    with pytest.raises(
        ValueError, match=r"reach from 1 to 3, and class numbers begin with 0: pass labels - 1"
    ):
        load([1, 2, 3, 1])
    with pytest.raises(ValueError, match=r"gaps, such as 1, 3: number the 3 classes with numpy\.unique"):
        load([0, 2, 4, 0])
    with pytest.raises(ValueError, match=r"reach from 0 to 255 and have gaps"):
        load([0, 1, 2, 255])
    assert load([1, 2, 3, 1], num_classes=4) == 4
    assert load([0, 2, 4, 0], num_classes=7) == 7


def test_an_npz_file_may_say_its_number_of_classes(tmp_path: Path) -> None:
    images, labels = np.zeros((4, 8, 8, 3), np.uint8), np.array([1, 2, 3, 1])
    arrays = {f"{split}_{what}": a for split in ("train", "test") for what, a in
              (("images", images), ("labels", labels))}  # fmt: skip
    np.savez(tmp_path / "from1.npz", **arrays)
    with pytest.raises(ValueError, match=r"from1\.npz: labels reach from 1 to 3.*num_classes=4"):
        data.load(str(tmp_path / "from1.npz"))
    np.savez(tmp_path / "said.npz", **arrays, num_classes=5)
    assert data.load(str(tmp_path / "said.npz")).num_classes == 5


def test_classes_without_training_images_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tfds_folder.write(tmp_path, "letters", features(classes=6), {"train": pictures(6), "test": pictures(2)})
    with caplog.at_level(logging.WARNING, "jaxkd"):
        data.load("letters", data_dir=tmp_path)
    assert "3 of the 6 classes of letters have no training image: 3, 4, 5" in caplog.text


def test_hugging_face_datasets_are_read(tmp_path: Path) -> None:
    """With the library itself, where it is installed."""
    datasets = pytest.importorskip("datasets")
    rows = pictures(10)
    columns = {"img": [Image.fromarray(row["image"]) for row in rows], "fine": [row["label"] for row in rows]}
    kinds = {"img": datasets.Image(), "fine": datasets.ClassLabel(names=["a", "b", "c"])}
    made = datasets.Dataset.from_dict(columns, features=datasets.Features(kinds))
    made.save_to_disk(tmp_path / "saved")
    loaded = datasets.load_from_disk(str(tmp_path / "saved"))
    dataset = data.from_examples(datasets.DatasetDict(loaded.train_test_split(test_size=3, seed=0)))
    assert (dataset.num_classes, dataset.image_shape) == (3, (12, 12, 3))
    assert [len(dataset.splits[name]) for name in ("train", "test")] == [7, 3]
    known = {row["image"].tobytes(): row["label"] for row in rows}
    split = in_memory(dataset, "train")
    assert [known[image.tobytes()] for image in split.images] == split.labels.tolist()
    with pytest.raises(TypeError, match="streaming=False"):
        data.from_examples({"train": made.to_iterable_dataset()})

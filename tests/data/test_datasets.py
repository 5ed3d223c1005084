"""Where images come from, and what is said when they do not come."""

from __future__ import annotations

import dataclasses
import sys
import tracemalloc
from pathlib import Path

import helpers
import numpy as np
import pytest

from jaxkd import data
from jaxkd.config import CacheConfig, TrainConfig
from jaxkd.data.collection import hold_out
from jaxkd.data.datasets import measure


def test_digits_are_real_and_described_rightly() -> None:
    digits = data.load("digits")
    images = np.concatenate([digits.splits[name].images for name in ("train", "test")])
    assert images.shape == (1797, 8, 8, 1)
    assert images.dtype == np.uint8
    train = digits.splits["train"].images / 255
    assert digits.mean == pytest.approx((train.mean(),), abs=1e-4)
    assert digits.std == pytest.approx((train.std(),), abs=1e-4)
    assert np.bincount(digits.splits["test"].labels, minlength=10).min() > 30


def test_cifar100_is_read_without_tensorflow(
    shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    decoded = data.load("cifar100", data_dir=shared_data / "tfds", splits=("test",))
    assert decoded.splits["test"].images.shape == (10_000, 32, 32, 3)
    assert np.bincount(decoded.splits["test"].labels).tolist() == [100] * 100
    assert len(list((tmp_path / "jaxkd" / "data").glob("cifar100-test-*.npz"))) == 1
    cached = data.load("cifar100", data_dir=shared_data / "tfds", splits=("test",))
    assert cached.digest == decoded.digest
    assert "tensorflow" not in sys.modules


def test_a_damaged_cache_is_read_anew(
    shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = data.load("cifar10", data_dir=shared_data / "tfds", splits=("test",))
    (cache,) = (tmp_path / "jaxkd" / "data").glob("*.npz")
    whole = cache.read_bytes()
    for damaged in (whole[:1000], b""):
        cache.write_bytes(damaged)
        assert data.load("cifar10", data_dir=shared_data / "tfds", splits=("test",)).digest == first.digest


def test_an_empty_folder_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no split 'train' of cifar100 in .*--data-dir"):
        data.load("cifar100", data_dir=tmp_path)


def test_npz_files(tmp_path: Path) -> None:
    dataset = helpers.tiny_dataset()
    path = helpers.write_npz(tmp_path / "tiny.npz", dataset)
    loaded = data.load(str(path))
    for name, split in dataset.splits.items():
        np.testing.assert_array_equal(loaded.splits[name].images, split.images)
        np.testing.assert_array_equal(loaded.splits[name].labels, split.labels)
    assert loaded.num_classes == 3
    for split in ("train", "test"):
        alone = data.load(str(path), splits=(split,))
        assert list(alone.splits) == [split]
        assert (alone.num_classes, alone.mean) == (loaded.num_classes, loaded.mean)
    for contents in (b"", path.read_bytes()[:1000]):
        (tmp_path / "damaged.npz").write_bytes(contents)
        with pytest.raises(ValueError, match=r"damaged\.npz cannot be read as an \.npz file"):
            data.load(str(tmp_path / "damaged.npz"))
    np.savez(tmp_path / "half.npz", train_images=dataset.splits["train"].images)
    with pytest.raises(
        ValueError, match=r"half\.npz lacks the arrays train_labels, test_images, test_labels"
    ):
        data.load(str(tmp_path / "half.npz"))
    with pytest.raises(FileNotFoundError, match=r"no file .*absent\.npz"):
        data.load("absent.npz")


def test_unknown_data_sets_are_refused() -> None:
    with pytest.raises(ValueError, match=r'set "mnistt"; did you mean "mnist"\? Accepted: digits'):
        data.load("mnistt")


def test_arrays_that_do_not_fit_are_refused() -> None:
    images, labels = np.zeros((4, 8, 8, 3), np.uint8), np.array([0, 1, 2, 1])
    good = (images, labels)
    for bad, message in (
        ((images.astype(np.float32), labels), r"images must be uint8 \[N, H, W, C\], got float32"),
        ((images[..., 0], labels), r"images must be uint8"),
        ((images, labels[:3]), r"labels must be integers \[4\]"),
        ((images, labels.astype(float)), r"labels must be integers"),
        ((images[:0], labels[:0]), r"at least one example"),
        ((images.transpose(0, 3, 1, 2), labels), r"looks like \[N, C, H, W\]; convert it with"),
        ((images.astype(np.uint16), labels), r"of 16 bits, take the upper 8 with \(images >> 8\)"),
        ((images.astype(np.int64), labels), r"from 0 to 255, convert it with images\.astype"),
        ((images, labels - 1), r"labels must be class numbers from 0, got -1 to 1"),
        ((images, labels.astype(np.int64) + 2**40), r"class numbers from 0, got 1099511627776"),
        ((np.zeros((4, 9, 9, 3), np.uint8), labels), r"images must have one size in all splits"),
    ):
        with pytest.raises(ValueError, match=message):
            data.from_arrays(bad, good)
    with pytest.raises(ValueError, match=r"labels of split 'train' reach from 0 to 2, but num_classes=2"):
        data.from_arrays(good, good, num_classes=2)
    with pytest.raises(ValueError, match="one value for each of 3 channels"):
        data.from_arrays(good, good, mean=(0.5,), std=(0.5,))


@pytest.mark.parametrize("dtype", [">i4", ">u2", "u1", "i8", "u8"])
def test_labels_of_any_integer_type_are_taken(dtype: str) -> None:
    images, labels = np.zeros((4, 8, 8, 3), np.uint8), np.array([0, 1, 2, 1], dtype)
    dataset = data.from_arrays((images, labels), (images, labels))
    split = dataset.splits["train"]
    assert isinstance(split, data.Split)
    assert split.labels.dtype == np.int32
    assert split.labels.tolist() == [0, 1, 2, 1]


def test_the_digest_tells_data_sets_apart() -> None:
    first, same, other = (helpers.tiny_dataset(seed=seed) for seed in (0, 0, 1))
    assert first.digest == same.digest != other.digest
    normalised = dataclasses.replace(first, mean=(0.9,))
    viewed = dataclasses.replace(first, augmentation=data.CropFlip(padding=0))
    assert len({first.digest, normalised.digest, viewed.digest}) == 3


def test_the_digest_of_functions_is_that_of_their_names() -> None:
    """Not of their addresses, which differ in every process."""

    def views(count: int) -> list[data.Dataset]:
        made = []
        for _ in range(count):

            def view(image: np.ndarray, **_: int) -> np.ndarray:
                return image

            split = data.StreamedSplit(
                [{"image": np.zeros((2, 2, 1), np.uint8), "label": 0}], (2, 2, 1), "one", view
            )
            dataset = helpers.tiny_dataset(num_train=8)
            augmentation = data.Compose((dataset.augmentation, view))
            made.append(dataclasses.replace(dataset, augmentation=augmentation))
            mean = std = (0.5,)
            made.append(data.Dataset("streamed", {"train": split}, 2, mean, std, data.Identity()))
        return made

    digests = [dataset.digest for dataset in views(2)]
    assert digests[:2] == digests[2:]


def test_images_are_measured_without_a_copy_of_them_all() -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (1000, 16, 16, 3)).astype(np.uint8)
    images[..., 1] //= 3
    mean, std = images.mean((0, 1, 2)) / 255, images.std((0, 1, 2)) / 255
    tracemalloc.start()
    found = measure(images)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    np.testing.assert_allclose(found, (mean, std), atol=5.1e-5)
    assert peak < 3 * images.nbytes


@pytest.mark.parametrize(("name", "epochs"), [("cifar100:3.0.2", 240), ("stl10:1.0.0", 30), ("digits", 10)])
def test_a_version_changes_no_recipe(name: str, epochs: int) -> None:
    assert TrainConfig(data=name).default_epochs == epochs


def test_a_cache_is_of_what_is_not_held_out() -> None:
    dataset = CacheConfig(teacher="digits-resnet20", holdout=0.25).load(("train",))
    assert len(dataset.splits["train"]) == 1078
    given = CacheConfig(teacher="digits-resnet20", holdout=0.25).load(
        ("train",), given=helpers.tiny_dataset()
    )
    assert given.digest == hold_out(helpers.tiny_dataset(), 0.25).digest


def test_a_part_of_the_training_images_is_held_out() -> None:
    dataset = helpers.tiny_dataset()
    held = hold_out(dataset, 0.25)
    train, kept, test = dataset.splits["train"], held.splits["train"], held.splits["test"]
    assert (len(kept), len(test)) == (30, 10)
    whole = {image.tobytes() for image in train.images}
    parts = [{image.tobytes() for image in split.images} for split in (kept, test)]
    assert parts[0] | parts[1] == whole
    assert not parts[0] & parts[1]
    assert held.digest == hold_out(dataset, 0.25).digest != dataset.digest
    assert held.name == "tiny-holdout"
    with pytest.raises(ValueError, match=r"--holdout must be between 0 and 1, such as 0\.1, got 1\.5"):
        TrainConfig(holdout=1.5)

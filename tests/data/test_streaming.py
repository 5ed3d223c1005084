"""Streamed splits and the views that are made on the host."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import helpers
import numpy as np
import pytest

from jaxkd import data
from jaxkd.data import StreamedSplit
from jaxkd.data.host_views import CentralCrop, RandomResizedCrop
from jaxkd.data.streaming import in_memory
from jaxkd.data.tfds_source import open_tfds


def picture(height: int, width: int) -> np.ndarray:
    """Its channels tell row, column and a constant."""
    rows, columns = np.mgrid[0:height, 0:width]
    channels = [rows * 255 // height, columns * 255 // width, np.full_like(rows, 200)]
    return np.stack(channels, -1).astype(np.uint8)


def test_a_stream_begins_at_any_step() -> None:
    train = helpers.tiny_dataset().splits["train"]
    ids = np.random.default_rng(0).permutation(40).reshape(5, 8)
    ids[-1, 5:] = -1
    split = in_memory(train.images, train.labels)
    whole = list(split.batches(ids, seed=0, epoch=1))
    rest = list(split.batches(ids[3:], seed=0, epoch=1))
    assert len(whole) == 5
    for a, b in zip(whole[3:], rest, strict=True):
        np.testing.assert_array_equal(a[0], b[0])
        np.testing.assert_array_equal(a[1], b[1])
    np.testing.assert_array_equal(whole[0][0], train.images[ids[0]])
    assert not whole[-1][0][5:].any()
    assert list(split.batches(ids[:0])) == []


def test_worker_processes_read_the_same_and_leave_signals_to_the_parent() -> None:
    previous = signal.signal(signal.SIGTERM, lambda *_: None)  # what a run that saves on SIGTERM has in place
    try:
        split = StreamedSplit(helpers.SignalSource(), (2, 2, 1), digest="", workers=2)
        read = list(split.batches(np.arange(8).reshape(4, 2)))
    finally:
        signal.signal(signal.SIGTERM, previous)
    assert [images[:, 0, 0, 0].tolist() for images, _ in read] == [[0, 1], [2, 3], [4, 5], [6, 7]]
    ignored = 3 if sys.platform == "linux" else 2  # Ctrl-C and SIGTERM, or Ctrl-C alone
    assert {int(label) for _, labels in read for label in labels} == {ignored}


def test_views_on_the_host_depend_on_seed_epoch_and_example_alone() -> None:
    split = StreamedSplit(
        [{"image": picture(20 + i, 30), "label": i} for i in range(6)],
        (8, 8, 3),
        digest="",
        train_view=RandomResizedCrop(8),
        eval_view=CentralCrop(8, resize=10),
    )

    def images(ids: list[int], **when: Any) -> np.ndarray:
        return next(split.batches(np.array([ids]), **when))[0]

    first = images([0, 1, 2, 3, 4, 5], seed=1, epoch=1)
    np.testing.assert_array_equal(first[[4, 2]], images([4, 2], seed=1, epoch=1))
    for other in ({"seed": 2, "epoch": 1}, {"seed": 1, "epoch": 2}):
        assert all((a != b).any() for a, b in zip(first, images([0, 1, 2, 3, 4, 5], **other), strict=True))
    evaluated = images([3, 3])
    np.testing.assert_array_equal(evaluated[0], evaluated[1])
    np.testing.assert_array_equal(evaluated[0], images([3], seed=5)[0])


def test_random_crops_keep_to_their_areas_and_ratios() -> None:
    crop = RandomResizedCrop(16, flip=False)
    image = picture(240, 320)
    areas, ratios, mirrored = [], [], 0
    for example_id in range(300):
        shown = crop(image, seed=0, epoch=1, example_id=example_id).astype(np.float64)
        height = (shown[-1, 0, 0] - shown[0, 0, 0]) / 255 * 240 * 16 / 15
        width = (shown[0, -1, 1] - shown[0, 0, 1]) / 255 * 320 * 16 / 15
        areas.append(height * width / (240 * 320))
        ratios.append(width / height)
        flipped = RandomResizedCrop(16)(image, seed=0, epoch=1, example_id=example_id)
        mirrored += flipped[0, 0, 1] > flipped[0, -1, 1]
        assert (shown[..., 2] == 200).all()
    assert 0.06 < min(areas) < 0.12
    assert 0.85 < max(areas) < 1.05
    assert 0.7 < min(ratios) < 0.8
    assert 1.25 < max(ratios) < 1.45
    assert 110 < mirrored < 190


@pytest.mark.parametrize("shape", [(4, 400), (400, 4)])
def test_an_image_in_which_no_crop_fits_gives_its_centre(shape: tuple[int, int]) -> None:
    shown = RandomResizedCrop(8, area=(0.9, 1.0), flip=False)(picture(*shape), seed=0, epoch=1, example_id=0)
    along = 1 if shape[1] > shape[0] else 0
    assert abs(shown[..., along].mean() - 127) < 2


def test_a_fourth_channel_is_no_opacity() -> None:
    """Near infrared is 0 over water, where the colours are not."""
    image = np.concatenate([picture(16, 16), np.zeros((16, 16, 1), np.uint8)], axis=-1)
    shown = CentralCrop(8, resize=8)(image)
    np.testing.assert_array_equal(shown[..., :3], CentralCrop(8, resize=8)(image[..., :3]))
    assert not shown[..., 3].any()


def test_the_centre_is_the_centre() -> None:
    shown = CentralCrop(8, resize=10)(picture(40, 80)).astype(float)
    assert shown.shape == (8, 8, 3)
    np.testing.assert_allclose(shown, 255 - shown[::-1, ::-1] - [0, 0, 255 - 400], atol=8)
    assert shown[0, -1, 1] - shown[0, 0, 1] == pytest.approx(255 * 7 / 20, abs=6)


def test_images_of_another_shape_are_refused() -> None:
    split = StreamedSplit([{"image": picture(9, 9), "label": 0}], (8, 8, 3), digest="")
    with pytest.raises(
        ValueError, match=r"example 0 is uint8 \[9, 9, 3\], and the split's images are uint8 \[8"
    ):
        list(split.batches(np.array([[0]])))


@pytest.mark.parametrize("label", [3, -1, 1.5, 2**31])
def test_labels_that_are_no_class_are_refused(label: Any) -> None:
    split = StreamedSplit([{"image": picture(8, 8), "label": label}], (8, 8, 3), digest="")
    train = data.Dataset("own", {"train": split}, 3, (0.5,) * 3, (0.5,) * 3, data.Identity()).splits["train"]
    with pytest.raises(ValueError, match=rf"example 0 must be a whole number from 0 to 2, got {label}"):
        list(train.batches(np.array([[0]])))


KILLING = """
import dataclasses, multiprocessing, os, signal
import numpy as np
from jaxkd.data.streaming import in_memory

def main():
    split = in_memory(np.zeros((8, 8, 8, 1), np.uint8), np.zeros(8, np.int32))
    split = dataclasses.replace(split, workers=1)
    for number, _ in enumerate(split.batches(np.zeros((3000, 16), int))):
        if number == 2:
            worker, = (c for c in multiprocessing.active_children() if c.name.startswith("grain-"))
            os.kill(worker.pid, signal.SIGKILL)

if __name__ == "__main__":
    try:
        main()
    except ChildProcessError as error:
        print(error)
"""


def test_a_worker_that_is_killed_is_an_error_that_says_so(tmp_path: Path) -> None:
    """Before: a traceback of Grain's, and a warning of Python's for each array in shared memory."""
    (tmp_path / "killing.py").write_text(KILLING)
    done = subprocess.run(
        [sys.executable, tmp_path / "killing.py"], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.stdout.startswith("a process that reads images ended with exit code -9; if memory was short")
    assert done.stderr == ""


def test_a_tfds_folder_is_read_example_by_example(shared_data: Path) -> None:
    parts = open_tfds("cifar100", shared_data / "tfds").parts
    whole = data.load("cifar100", data_dir=shared_data / "tfds", splits=("test",)).splits["test"]
    assert isinstance(whole, data.Split)
    split = StreamedSplit(parts["test"].source, (32, 32, 3), parts["test"].digest)
    ids = np.array([[9_999, 0, 123], [5_000, -1, -1]])
    for wanted, (read, read_labels) in zip(ids, split.batches(ids), strict=True):
        real = wanted >= 0
        np.testing.assert_array_equal(read[real], whole.images[wanted[real]])
        np.testing.assert_array_equal(read_labels[real], whole.labels[wanted[real]])
    assert parts["test"].digest == open_tfds("cifar100", shared_data / "tfds").parts["test"].digest
    assert parts["test"].digest != parts["train"].digest

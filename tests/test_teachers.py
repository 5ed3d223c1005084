"""Teachers: save, load, import."""

from __future__ import annotations

import json
from pathlib import Path

import helpers
import numpy as np
import pytest

from jaxkd import data, models, teachers
from jaxkd.storage import DamagedError


def test_a_teacher_comes_back_with_its_description(
    tmp_path: Path, dataset: data.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    helpers.untrained_teacher(tmp_path / "zoo" / "mine", dataset)
    monkeypatch.setenv("JAXKD_TEACHERS", str(tmp_path / "zoo"))
    by_path, by_name = teachers.load(tmp_path / "zoo" / "mine"), teachers.load("mine")
    assert by_path.digest == by_name.digest
    assert (by_name.name, by_name.num_classes, by_name.description.model) == ("mine", 3, "resnet8")

    images = dataset.splits["test"].images
    logits = by_name.logits(images)
    network = models.create("resnet8", 3)
    normalised = data.normalize(images, dataset.mean, dataset.std)
    np.testing.assert_allclose(logits, network.apply(by_path.variables, normalised).logits, atol=1e-5)
    np.testing.assert_allclose(by_name.logits(normalised), logits, atol=1e-5)
    assert by_name.features(images)["stage2"].shape == (19, 4, 4, 32)


def test_what_cannot_be_loaded_is_told(tmp_path: Path, dataset: data.Dataset) -> None:
    with pytest.raises(
        FileNotFoundError, match=r'no teacher "absent": looked for teacher\.json in .*jaxkd import'
    ):
        teachers.load("absent")
    folder = helpers.untrained_teacher(tmp_path / "old", dataset)
    fields = json.loads((folder / "teacher.json").read_text())
    (folder / "teacher.json").write_text(json.dumps({**fields, "format": 99}))
    with pytest.raises(ValueError, match="is not of format 1"):
        teachers.load(folder)


def test_a_flipped_bit_is_found(tmp_path: Path, dataset: data.Dataset) -> None:
    folder = helpers.untrained_teacher(tmp_path / "teacher", dataset)
    largest = max((folder / "variables").rglob("*"), key=lambda path: path.stat().st_size)
    contents = bytearray(largest.read_bytes())
    contents[len(contents) // 2] ^= 1
    largest.write_bytes(contents)
    with pytest.raises(DamagedError, match=r"(is damaged|cannot be restored)"):
        teachers.load(folder)


def test_images_that_do_not_fit_are_refused(tmp_path: Path, dataset: data.Dataset) -> None:
    teacher = teachers.load(helpers.untrained_teacher(tmp_path / "teacher", dataset))
    with pytest.raises(ValueError, match=r"images must be \[B, H, W, 1\], got \[4, 8, 8, 3\]"):
        teacher.logits(np.zeros((4, 8, 8, 3), np.uint8))
    with pytest.raises(TypeError, match="images must be uint8, or floats that are normalised, got int32"):
        teacher.logits(np.zeros((4, 8, 8, 1), np.int32))


def test_weights_of_another_network_are_refused(shared_data: Path) -> None:
    file = shared_data / "teachers" / "cifar100_resnet56.pt"
    with pytest.raises(
        ValueError, match=r"as resnet20 with 100 classes: .*not in the model: layer1\.3\.conv1"
    ):
        teachers.import_torch(file, model="resnet20", num_classes=100)
    with pytest.raises(ValueError, match=r"fc\.weight is \(64, 100\), the model needs \(64, 10\)"):
        teachers.import_torch(file, model="resnet56", num_classes=10)

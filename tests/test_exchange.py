"""Weights from the PyTorch world and back, and the list of teachers."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import helpers
import jax
import numpy as np
import pytest
import safetensors.numpy
from helpers import call_jaxkd, run_jaxkd

from jaxkd import storage, teachers
from jaxkd.storage import DamagedError
from jaxkd.teachers import torch_files


def test_an_exported_teacher_comes_back_with_the_same_bits(tmp_path: Path) -> None:
    """Through the command line, told nothing: the file says what it is."""
    file, folder = tmp_path / "weights.safetensors", tmp_path / "again"
    code, output, errors = call_jaxkd("export", "digits-resnet20", file)
    assert code == 0, errors
    assert f"digits-resnet20 (resnet20) exported to {file}" in output
    code, output, errors = call_jaxkd("import", file, "--out", folder)
    assert code == 0, errors
    known, again = teachers.load("digits-resnet20"), teachers.load(folder)
    assert again.digest == known.digest
    assert again.description == known.description
    assert f"on all 360 test images: accuracy {known.description.test_accuracy:.2f} %" in output


def test_the_file_holds_torch_names_and_layouts(tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    teacher = teachers.load("digits-resnet20")
    teachers.export_torch(teacher, file)
    weights = safetensors.numpy.load_file(file)
    assert weights["layer2.0.downsample.0.weight"].shape == (32, 16, 1, 1)
    assert weights["fc.weight"].shape == (10, 64)
    np.testing.assert_array_equal(
        weights["conv1.weight"][5, 0], teacher.variables["params"]["conv1"]["kernel"][:, :, 0, 5]
    )
    assert len(weights) == 5 * 21 + 2  # conv and four of batch norm, and the head
    with pytest.raises(ValueError, match=r"the ending must be \.safetensors"):
        teachers.export_torch(teacher, tmp_path / "weights.pt")


def test_importing_and_exporting_gives_the_publishers_arrays(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "teachers" / "cifar100_resnet56.npz"
    variables = teachers.import_torch(source, model="resnet56", num_classes=100)
    description = teachers.Description("resnet56", 100, (32, 32, 3), (0.5,) * 3, (0.25,) * 3, "cifar100")
    teachers.export_torch(teachers.Teacher("t", description, variables, ""), tmp_path / "t.safetensors")
    with np.load(source) as arrays:
        published = {name: arrays[name] for name in arrays if not name.endswith("num_batches_tracked")}
    exported = safetensors.numpy.load_file(tmp_path / "t.safetensors")
    assert exported.keys() == published.keys()
    for name, array in published.items():
        np.testing.assert_array_equal(exported[name], array)


def test_the_original_resnets_are_imported_with_shortcut_a(
    shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An older container, `module.` prefixes, a head named `linear`, shortcuts without weights."""
    helpers.evaluate_imports_on(1000, monkeypatch)  # of 10,000, which are a slow test
    arguments = original_resnet(shared_data)
    code, output, errors = call_jaxkd(*arguments, "--shortcut", "A", "--out", tmp_path / "t")
    assert code == 0, errors
    found = re.search(r"on all 1,000 test images: accuracy ([\d.]+) %", output)
    assert found is not None, output
    assert float(found[1]) == pytest.approx(92.4, abs=0.21)  # what the first 1,000 of 10,000 have
    teacher = teachers.load(tmp_path / "t")
    assert teacher.description.model_options == {"shortcut": "A"}
    assert teacher.logits(np.zeros((1, 32, 32, 3), np.uint8)).shape == (1, 10)
    code, _, errors = call_jaxkd(*arguments)
    assert code == 1
    assert "missing: " in errors
    assert "downsample" in errors


@pytest.mark.slow
def test_the_original_resnets_have_their_publishers_accuracy(shared_data: Path, tmp_path: Path) -> None:
    arguments = [*original_resnet(shared_data), "--shortcut", "A", "--out", tmp_path / "t"]
    code, output, errors = run_jaxkd(*arguments, optimized=True)
    assert code == 0, errors
    assert "on all 10,000 test images: accuracy 91.73 %" in output


def original_resnet(shared_data: Path) -> list[object]:
    file = shared_data / "teachers" / "cifar10_resnet20_optionA.th"
    options = ["--model", "resnet20", "--data", "cifar10", "--data-dir", shared_data / "tfds"]
    return ["import", file, *options, "--mean", 0.485, 0.456, 0.406, "--std", 0.229, 0.224, 0.225]


def test_what_cannot_be_imported_is_told(tmp_path: Path) -> None:
    np.savez(tmp_path / "weights.npz", w=np.zeros(3))
    code, _, errors = call_jaxkd("import", tmp_path / "weights.npz")
    assert code == 1
    assert "does not say what it is; name its architecture with --model" in errors
    code, _, errors = call_jaxkd("import", tmp_path / "weights.npz", "--model", "resnet8", "--data", "mnistt")
    assert code == 2
    assert 'unknown data set "mnistt"; did you mean "mnist"? Accepted: digits' in errors
    (tmp_path / "broken.safetensors").write_bytes(b"\x08\x00\x00\x00")
    code, _, errors = call_jaxkd("import", tmp_path / "broken.safetensors", "--model", "resnet8")
    assert code == 1
    assert "broken.safetensors is damaged" in errors


def test_teachers_are_listed_and_verified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("JAXKD_TEACHERS", str(tmp_path))
    helpers.untrained_teacher(tmp_path / "mine", helpers.tiny_dataset())
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "teacher.json").write_text(json.dumps({"format": 0}))
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "teacher.json").write_text('{"format": 1, "mod')
    names = [entry.name for entry in teachers.available()]
    assert names == ["mine", "digits-resnet20"]
    assert "skipping" in caplog.text
    assert str(tmp_path / "torn") in caplog.text

    code, output, errors = call_jaxkd("teachers", "--verify")
    assert code == 1
    assert "2 of 4 teachers are damaged" in errors
    shutil.rmtree(tmp_path / "old")
    shutil.rmtree(tmp_path / "torn")
    code, output, errors = call_jaxkd("teachers", "--verify")
    assert code == 0, errors
    assert "2 teacher(s), in" in output
    assert "97.78" in next(line for line in output.splitlines() if "| digits-resnet20" in line)
    shutil.rmtree(tmp_path / "mine" / "variables")
    code, output, errors = call_jaxkd("teachers", "--verify")
    assert code == 1
    assert re.search(rf"{tmp_path}/mine/variables/\S+ is damaged: it is absent", output)
    assert "| digits-resnet20" in output
    assert "1 of 2 teachers are damaged" in errors
    helpers.untrained_teacher(tmp_path / "flipped", helpers.tiny_dataset())
    file = tmp_path / "flipped" / "teacher.json"
    file.write_text(file.read_text().replace('"mean": [\n    0.', '"mean": [\n    1.'))
    code, output, errors = call_jaxkd("teachers", "--verify")
    assert code == 1
    assert f"{file} is damaged: checksum mismatch" in errors
    assert "2 of 3 teachers are damaged" in errors


def test_an_import_replaces_no_other_teacher_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from jaxkd import cli

    monkeypatch.setenv("JAXKD_TEACHERS", str(tmp_path / "zoo"))
    dataset = helpers.tiny_dataset()
    npz = str(helpers.write_npz(tmp_path / "own.npz", dataset))
    files = []
    for number in (1, 2):
        folder = helpers.untrained_teacher(
            tmp_path / f"t{number}", dataset, change=lambda v, n=number: scaled(v, n)
        )
        files.append(str(tmp_path / f"t{number}.safetensors"))
        teachers.export_torch(teachers.load(folder), files[-1])
    # "tiny" is a name of Python's side alone: it is imported all the same, and not evaluated.
    cli.main(["import", files[0], "--out", str(tmp_path / "kept")])
    assert teachers.load(tmp_path / "kept").description.data == "tiny"
    with pytest.raises(SystemExit):
        cli.main(["import", files[1], "--out", str(tmp_path / "kept")])
    assert teachers.load(tmp_path / "kept").digest == teachers.load(tmp_path / "t1").digest
    cli.main(["import", files[1], "--out", str(tmp_path / "large"), "--image-size", "16"])
    assert teachers.load(tmp_path / "large").description.image_shape == (16, 16, 1)
    for _ in range(2):
        cli.main(["import", files[0], "--data", npz])
    with pytest.raises(SystemExit):
        cli.main(["import", files[1], "--data", npz])
    assert teachers.load("own-resnet8").digest == teachers.load(tmp_path / "t1").digest
    assert teachers.load("own-resnet8").description.test_accuracy is not None


def scaled(variables: dict, factor: int) -> dict:
    return {**variables, "params": jax.tree.map(lambda leaf: factor * leaf, variables["params"])}


def test_a_torn_description_is_damage(tmp_path: Path) -> None:
    (tmp_path / "teacher.json").write_text('{"format": 1, "mod')
    with pytest.raises(DamagedError, match=r"teacher\.json is damaged: it is not JSON"):
        teachers.load(tmp_path)


def test_an_import_deletes_nothing(tmp_path: Path) -> None:
    """`--out` names a folder with other teachers in it: before, they were gone and the exit code was 0."""
    file, out = tmp_path / "weights.safetensors", tmp_path / "teachers"
    teachers.export_torch(teachers.load("digits-resnet20"), file)
    helpers.untrained_teacher(out / "mine", helpers.tiny_dataset())
    before = sorted(out.rglob("*"))
    code, _, errors = call_jaxkd("import", file, "--out", out)
    assert code == 1
    assert f"{out} holds something else (mine), and nothing was changed" in errors
    assert sorted(out.rglob("*")) == before


def test_an_export_gives_the_same_bytes_each_time(tmp_path: Path) -> None:
    for number in range(2):
        assert call_jaxkd("export", "digits-resnet20", tmp_path / f"{number}.safetensors")[0] == 0
    assert (tmp_path / "0.safetensors").read_bytes() == (tmp_path / "1.safetensors").read_bytes()


@pytest.mark.parametrize("about", ["[]", "{", "{}", "[" * 100_000, '{"model": 3}'])
def test_a_file_that_describes_itself_wrongly_is_told(tmp_path: Path, about: str) -> None:
    path = tmp_path / "weights.safetensors"
    torch_files.write(path, {"w": np.zeros(3)}, {"jaxkd": about})
    with pytest.raises(ValueError, match="describes itself wrongly"):
        teachers.described_in(path)


def test_flipped_bits_of_an_exported_file_are_found(tmp_path: Path) -> None:
    """Of the description and the weights; before, a flipped bit of either was imported."""
    dataset = helpers.tiny_dataset()
    teacher = teachers.load(helpers.untrained_teacher(tmp_path / "teacher", dataset))
    file = tmp_path / "teacher.safetensors"
    teachers.export_torch(teacher, file)
    good = file.read_bytes()
    known = teachers.described_in(file)
    header = 8 + int.from_bytes(good[:8], "little")
    found = 0
    for place in [*range(0, header, 97), *range(header, len(good), len(good) // 40)]:
        changed = bytearray(good)
        changed[place] ^= 1 << place % 8
        file.write_bytes(changed)
        try:
            about = teachers.described_in(file)
            variables = teachers.import_torch(file, model="resnet8", num_classes=3, image_shape=(8, 8, 1))
        except ValueError:
            found += 1
        else:  # the name of the checksum itself
            assert (about, storage.tree_digest(variables)) == (known, teacher.digest)
    assert found > 60

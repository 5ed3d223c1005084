"""Reading PyTorch's files without PyTorch, and without running what is in them."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from helpers import run_jaxkd

from jaxkd import torch_files


class Exploit:
    """Pickles to a call that creates a file: what a malicious checkpoint does."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.victim}",)


def write_zip(path: Path, pickled: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
    return path


@pytest.mark.parametrize("container", ["zip", "legacy"])
def test_a_malicious_file_is_refused_and_does_not_run(tmp_path: Path, container: str) -> None:
    victim, path = tmp_path / "owned", tmp_path / "evil.pt"
    pickled = pickle.dumps({"state_dict": Exploit(victim)})
    if container == "zip":
        write_zip(path, pickled)
    else:
        path.write_bytes(pickled)
    with pytest.raises(ValueError, match=r"refused to read .*(posix|nt)\.system.*could run code"):
        torch_files.read(path)
    code, _, errors = run_jaxkd("import", path, "--model", "resnet8")
    assert code == 1
    assert "could run code" in errors
    assert not victim.exists()
    pickle.loads(pickled)  # the attack is a real one
    assert victim.exists()


@pytest.mark.parametrize("constructor", ["builtins.eval", "torch.load", "numpy.core.multiarray._reconstruct"])
def test_other_constructors_are_refused(tmp_path: Path, constructor: str) -> None:
    module, _, name = constructor.rpartition(".")
    path = write_zip(tmp_path / "odd.pt", f"c{module}\n{name}\n.".encode())
    with pytest.raises(ValueError, match=f"it asks for {constructor}"):
        torch_files.read(path)


def tensor(storage: str, offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> str:
    """A pickle's opcodes (protocol 0) for a call of torch's _rebuild_tensor_v2."""

    def numbers(values: tuple[int, ...]) -> str:
        return "(" + "".join(f"I{value}\n" for value in values) + "t"

    return f"ctorch._utils\n_rebuild_tensor_v2\n({storage}I{offset}\n{numbers(size)}{numbers(stride)}I00\nNtR"


STORAGE = "(S'storage'\nctorch\nFloatStorage\nS'0'\nS'cpu'\nI100\ntQ"


@pytest.mark.parametrize(
    ("pickled", "message"),
    [
        (tensor(tensor(STORAGE, 0, (10, 10), (10, 1)), 9, (91,), (1,)), "not a storage"),
        (tensor(STORAGE, 90, (20,), (1,)), "beyond its storage"),
        (tensor(STORAGE, 0, (10**9,), (0,)), "beyond its storage"),
        (tensor(STORAGE, -4, (4,), (1,)), "not a whole number from 0"),
        (tensor(STORAGE.replace("ctorch\nFloatStorage\n", "S'f8'\n"), 0, (4,), (1,)), "of an unknown type"),
    ],
)
def test_tensors_cannot_reach_beyond_their_storage(tmp_path: Path, pickled: str, message: str) -> None:
    path = tmp_path / "crafted.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled.join(("(S'fc.weight'\n", "d.")).encode())
        archive.writestr("archive/data/0", np.arange(100, dtype=np.float32).tobytes())
    with pytest.raises(ValueError, match=message):
        torch_files.read(path)


def test_the_crafted_form_is_read_where_it_is_honest(tmp_path: Path) -> None:
    path = tmp_path / "honest.pt"
    with zipfile.ZipFile(path, "w") as archive:
        pickled = tensor(STORAGE, 90, (2, 5), (5, 1)).join(("(S'fc.weight'\n", "d."))
        archive.writestr("archive/data.pkl", pickled.encode())
        archive.writestr("archive/data/0", np.arange(100, dtype=np.float32).tobytes())
    assert torch_files.read(path)["fc.weight"].tolist() == np.arange(90.0, 100.0).reshape(2, 5).tolist()


def test_both_torch_containers_and_npz_agree(shared_data: Path) -> None:
    folder = shared_data / "teachers"
    weights = torch_files.read(folder / "cifar100_resnet56.pt")
    with np.load(folder / "cifar100_resnet56.npz") as arrays:
        for name in arrays:
            np.testing.assert_array_equal(weights[name], arrays[name])
    legacy = torch_files.read(folder / "cifar10_resnet20_optionA.th")
    assert legacy["state_dict"]["module.conv1.weight"].shape == (16, 3, 3, 3)
    assert (
        sum(array.size for name, array in legacy["state_dict"].items() if name.endswith("weight")) > 260_000
    )


def test_safetensors(tmp_path: Path) -> None:
    arrays = {
        "fc.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
        "half": np.ones(2, ml_dtypes.bfloat16),
    }
    safetensors.numpy.save_file(arrays, tmp_path / "net.safetensors")
    read = torch_files.read(tmp_path / "net.safetensors")
    np.testing.assert_array_equal(read["fc.weight"], arrays["fc.weight"])
    assert read["half"].dtype == np.float32


@pytest.mark.parametrize("name", ["cifar100_resnet56.pt", "cifar10_resnet20_optionA.th"])
def test_truncated_files_are_told(shared_data: Path, tmp_path: Path, name: str) -> None:
    whole = (shared_data / "teachers" / name).read_bytes()
    for fraction in (0.01, 0.5, 0.99):
        path = tmp_path / name
        path.write_bytes(whole[: int(len(whole) * fraction)])
        with pytest.raises(ValueError, match=r"damaged .*download it again"):
            torch_files.read(path)


def test_a_flipped_bit_is_told(shared_data: Path, tmp_path: Path) -> None:
    contents = bytearray((shared_data / "teachers" / "cifar100_resnet56.pt").read_bytes())
    contents[len(contents) // 2] ^= 1  # inside the numbers: the zip's checksum tells
    path = tmp_path / "flipped.pt"
    path.write_bytes(contents)
    with pytest.raises(ValueError, match="damaged"):
        torch_files.read(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no file .*absent\.pt"):
        torch_files.read(tmp_path / "absent.pt")
    (tmp_path / "net.onnx").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"the ending must be one of \.pt"):
        torch_files.read(tmp_path / "net.onnx")
    write_zip(tmp_path / "list.pt", pickle.dumps([1, 2]))
    with pytest.raises(ValueError, match="holds a list, not a dictionary"):
        torch_files.read(tmp_path / "list.pt")

"""Reading PyTorch's files without PyTorch, and without running what is in them."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import hostile
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import torch_writer
from helpers import call_jaxkd
from hostile import tensor

from jaxkd.files.pickles import Inert
from jaxkd.teachers import torch_files


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
    code, _, errors = call_jaxkd("import", path, "--model", "resnet8")
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


STORAGE = hostile.STORAGE.format(100)


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
    for contents, message in {
        b"x": r"is damaged or not a file of weights .*begins with b'x'; accepted is a PyTorch file",
        b"": "is damaged or not a file of weights",
        b"<!DOCTYPE html><html>": "it is a web page and not the file itself",
        b"version https://git-lfs.github.com/spec/v1": "it is a Git LFS pointer.*git lfs pull",
        b"\x89HDF\r\n\x1a\n": "it is an HDF5 file",
    }.items():
        (tmp_path / "net.pt").write_bytes(contents)
        with pytest.raises(ValueError, match=message):
            torch_files.read(tmp_path / "net.pt")
    write_zip(tmp_path / "list.pt", pickle.dumps([1, 2]))
    with pytest.raises(ValueError, match="holds a list, not a dictionary"):
        torch_files.read(tmp_path / "list.pt")


CHECKPOINT = torch_writer.checkpoint(np.random.default_rng(0))


@pytest.mark.parametrize("form", ["little", "big", "protocol 4", "packed", "legacy"])
def test_checkpoints_with_what_scripts_put_in(tmp_path: Path, form: str) -> None:
    """NumPy numbers, a Namespace, sizes, devices and counters beside weights of every type."""
    path = tmp_path / "checkpoint.pt"
    if form == "legacy":
        torch_writer.save_legacy(path, CHECKPOINT)
    else:
        options = {"big": {"order": "big"}, "protocol 4": {"protocol": 4}, "packed": {"compression": 8}}
        torch_writer.save_zip(path, CHECKPOINT, **options.get(form, {}))
    read = torch_files.read(path)
    for name, weight in CHECKPOINT["state_dict"].items():
        wanted = weight.astype(np.float32) if weight.dtype == ml_dtypes.bfloat16 else weight
        np.testing.assert_array_equal(read["state_dict"][name], wanted)
        assert read["state_dict"][name].dtype == wanted.dtype
    del read["state_dict"]
    assert read.pop("saved").name == "datetime.datetime"
    assert read == {
        "epoch": 3,
        "best_acc": 71.25,
        "args": {"lr": 0.1, "arch": "resnet20", "milestones": [150, 180]},
        "shape": (2, 3),
        "device": Inert("torch.device", ("cuda", 0)),
        "milestones": {150: 1, 180: 1},
        "history": {"loss": [2.5, 1.5]},
    }


@pytest.mark.parametrize("ending", [".pth.tar", ".t7", ".bin", ".ckpt", ".PTH", ".npz", ""])
def test_the_first_bytes_decide_and_not_the_ending(tmp_path: Path, ending: str) -> None:
    path = torch_writer.save_zip(tmp_path / f"net{ending}", {"w": np.arange(3.0)})
    np.testing.assert_array_equal(torch_files.read(path)["w"], [0, 1, 2])
    np.savez(tmp_path / "arrays.npz", w=np.arange(3.0))
    (tmp_path / "arrays.npz").rename(path)
    np.testing.assert_array_equal(torch_files.read(path)["w"], [0, 1, 2])
    safetensors.numpy.save_file({"w": np.arange(3.0)}, path, {"note": "kept"})
    np.testing.assert_array_equal(torch_files.read(path)["w"], [0, 1, 2])
    assert torch_files.read_metadata(path) == {"note": "kept"}


def test_programs_and_quantised_weights_are_refused_by_these_words(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "script.pt", b"c__torch__.net\nNet\n.")
    with pytest.raises(ValueError, match="it is a TorchScript module"):
        torch_files.read(path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/constants.pkl", b"\x80\x02).")
    with pytest.raises(ValueError, match=r"it is a TorchScript archive.*jit\.load\(FILE\)\.state_dict"):
        torch_files.read(path)
    write_zip(path, b"ctorch._utils\n_rebuild_qtensor\n.")
    with pytest.raises(ValueError, match=r"it holds quantised tensors.*dequantize"):
        torch_files.read(path)


def test_tensors_share_their_storage(tmp_path: Path) -> None:
    """Views of one storage are views of one array: no memory for each."""
    storage = f"{STORAGE}p0\n"
    body = f"(S'a'\n{tensor(storage, 0, (10, 5), (5, 1))}S'b'\n{tensor('g0', 1, (5, 10), (1, 5))}d."
    path = tmp_path / "shared.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", body.replace("g0", "g0\n"))
        archive.writestr("archive/data/0", np.arange(100, dtype=np.float32).tobytes())
    read = torch_files.read(path)
    assert np.shares_memory(read["a"], read["b"])
    np.testing.assert_array_equal(read["b"], np.arange(50.0).reshape(10, 5).T + 1)


def test_the_same_weights_give_the_same_bytes(tmp_path: Path) -> None:
    """In two processes whose hashes differ, and however the dictionaries are ordered."""
    code = """
import sys, numpy as np
from jaxkd.teachers import torch_files
from jaxkd.files.pickles import Inert
weights = {name: np.arange(4.0) for name in sys.argv[2:]}
torch_files.write(sys.argv[1], weights, {"jaxkd": "about", "z": "last", "a": "first"})
"""
    written = set()
    for number, names in enumerate((["a", "b"], ["b", "a"], ["b", "a"], ["a", "b"])):
        path = tmp_path / f"{number}.safetensors"
        subprocess.run([sys.executable, "-c", code, path, *names], check=True)
        written.add(path.read_bytes())
    assert len(written) == 1
    assert safetensors.numpy.load_file(path).keys() == {"a", "b"}
    assert torch_files.read_metadata(path) == {"format": "pt", "jaxkd": "about", "z": "last", "a": "first"}

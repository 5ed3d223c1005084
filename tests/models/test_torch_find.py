"""Finding a network's weights in a file: prefixes, wrappers, other names."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from jaxkd.models.torch_find import find, renaming
from jaxkd.models.torch_names import to_flax, to_torch

LIKE: dict[str, Any] = {
    "params": {
        "conv1": {"kernel": np.zeros((3, 3, 3, 4))},
        "bn1": {"scale": np.zeros(4), "bias": np.zeros(4)},
        "layer1_0": {
            "conv1": {"kernel": np.zeros((3, 3, 4, 4))},
            "conv2": {"kernel": np.zeros((3, 3, 4, 4))},
        },
        "layer1_1": {
            "conv1": {"kernel": np.zeros((3, 3, 4, 4))},
            "conv2": {"kernel": np.zeros((3, 3, 4, 4))},
        },
        "fc": {"kernel": np.zeros((4, 2)), "bias": np.zeros(2)},
    },
    "batch_stats": {"bn1": {"mean": np.zeros(4), "var": np.zeros(4)}},
}
RNG = np.random.default_rng(0)
# In the order in which PyTorch lists them.
ORDER = ("conv1", "bn1", "layer1.0.conv1", "layer1.0.conv2", "layer1.1.conv1", "layer1.1.conv2", "fc")
OWN = to_torch(LIKE)
WEIGHTS = {
    name: RNG.random(OWN[name].shape).astype(np.float32)
    for module in ORDER
    for name in OWN
    if name.rpartition(".")[0] == module
}


def prefixed(prefix: str) -> dict[str, np.ndarray]:
    return {prefix + name: weight for name, weight in WEIGHTS.items()}


@pytest.mark.parametrize(
    "contents",
    [
        WEIGHTS,
        {"state_dict": WEIGHTS, "epoch": 3},
        {"net": prefixed("module."), "acc": 91.2},
        {"ema": {"model": prefixed("backbone.net.")}, "optimizer": {"state": {0: {"m": np.zeros(4)}}}},
        {"state_dict": {**prefixed("student."), "teacher.fc.bias": np.zeros(7)}},
        {"weights": {**WEIGHTS, "bn1.num_batches_tracked": np.array(3)}},
        {"state_dict": prefixed("module._orig_mod.")},
    ],
)
def test_any_common_prefix_and_any_outer_key(contents: dict[str, Any]) -> None:
    found = find(contents, LIKE)
    for name, weight in WEIGHTS.items():
        np.testing.assert_array_equal(found[name], weight)


def test_several_places_are_named_and_one_can_be_chosen() -> None:
    other = {name: weight + 1 for name, weight in WEIGHTS.items()}
    contents = {"state_dict": prefixed("module."), "ema": other}
    with pytest.raises(ValueError, match=r'each of "state_dict\.module", "ema"; choose one with prefix='):
        find(contents, LIKE)
    np.testing.assert_array_equal(find(contents, LIKE, prefix="ema")["fc.bias"], other["fc.bias"])
    found = find(contents, LIKE, prefix="state_dict.module.")
    np.testing.assert_array_equal(found["fc.bias"], WEIGHTS["fc.bias"])
    with pytest.raises(ValueError, match="no name in the file begins with the prefix 'teacher'"):
        find(contents, LIKE, prefix="teacher")


def test_what_is_missing_is_told_of_the_nearest_place() -> None:
    damaged = {name: weight for name, weight in prefixed("module.").items() if "fc.bias" not in name}
    contents = {"state_dict": {**damaged, "module.extra": np.zeros(1)}, "other": {"x": np.zeros(2)}}
    with pytest.raises(ValueError, match=r"missing: params/fc/bias; not in the model: extra"):
        to_flax(find(contents, LIKE), LIKE)


def test_words_are_renamed_at_once_and_whole() -> None:
    swapped = {name.replace("conv1", "x").replace("conv2", "conv1"): w for name, w in WEIGHTS.items()}
    swapped = {name.replace("x", "conv2"): weight for name, weight in swapped.items()}
    found = find(swapped, LIKE, rename={"conv1": "conv2", "conv2": "conv1"})
    assert found.keys() == WEIGHTS.keys()
    conv = {name.replace("layer1.0.conv1", "stage.conv"): weight for name, weight in WEIGHTS.items()}
    assert find(conv, LIKE, rename={"stage.conv": "layer1.0.conv1"}).keys() == WEIGHTS.keys()
    inside = {f"a.module.{name}": weight for name, weight in WEIGHTS.items()}
    assert find(inside, LIKE, rename={"module": "", "a": ""}).keys() == WEIGHTS.keys()
    with pytest.raises(ValueError, match="no name in the file has the words con to rename; it has conv1"):
        find(WEIGHTS, LIKE, rename={"con": "conv"})
    with pytest.raises(ValueError, match="after renaming, two weights are called layer1"):
        find(WEIGHTS, LIKE, rename={"conv2": "conv1"})


def test_a_renaming_needs_both_sides() -> None:
    for pair in ("conv", "=conv", ""):
        with pytest.raises(ValueError, match=f"a renaming must be OLD=NEW, got '{pair}'"):
            renaming([pair])


def test_other_names_in_the_same_order_are_offered() -> None:
    """As in code bases whose stem is conv/bn and whose stages are stage_1.0.conv_1."""
    theirs = {}
    for name, weight in WEIGHTS.items():
        words = {"conv1": "conv_1", "conv2": "conv_2", "bn1": "bn_1", "layer1": "stage_1", "fc": "head"}
        theirs[".".join(words.get(word, word) for word in name.split("."))] = weight
    with pytest.raises(ValueError, match="all layers have the same shapes in the same order") as caught:
        find({"state_dict": theirs}, LIKE)
    options = str(caught.value).partition("try ")[2].partition(" (in Python")[0].split("--rename ")[1:]
    rename = dict(option.strip().split("=") for option in options)
    assert rename == {"conv_1": "conv1", "bn_1": "bn1", "stage_1": "layer1", "conv_2": "conv2", "head": "fc"}
    found = to_flax(find({"state_dict": theirs}, LIKE, rename=rename), LIKE)
    wanted = to_flax(WEIGHTS, LIKE)
    np.testing.assert_array_equal(found["params"]["fc"]["kernel"], wanted["params"]["fc"]["kernel"])


def test_layers_whose_names_follow_no_words_are_offered_one_by_one() -> None:
    theirs = {}
    for number, module in enumerate(ORDER):
        theirs |= {
            f"{number}.{n.rpartition('.')[2]}": w for n, w in WEIGHTS.items() if n.startswith(f"{module}.")
        }
    with pytest.raises(ValueError, match=r"--rename 2=layer1\.0\.conv1 --rename 3=layer1\.0\.conv2"):
        find(theirs, LIKE)
    rename = {str(number): module for number, module in enumerate(ORDER)}
    assert find(theirs, LIKE, rename=rename).keys() == WEIGHTS.keys()


def test_nothing_is_offered_where_shapes_differ() -> None:
    theirs = {f"x{number}": weight for number, weight in enumerate(WEIGHTS.values())}
    theirs["x0"] = np.zeros((4, 3, 5, 5))
    assert find(theirs, LIKE).keys() == theirs.keys()


def test_a_file_without_weights_is_refused() -> None:
    with pytest.raises(
        ValueError, match="no weights found: the file holds epoch, lr, and none of it is an array"
    ):
        find({"epoch": 3, "lr": 0.1}, LIKE)


def test_names_of_a_file_are_shown_safely() -> None:
    with pytest.raises(ValueError, match="do not fit") as caught:
        to_flax(find({"\x1b[31m" + "y" * 200: np.zeros(1)}, LIKE), LIKE)
    assert "\x1b" not in str(caught.value)
    with pytest.raises(ValueError, match="a name has more than 256 characters"):
        find({"a" * 200: {"b" * 200: np.zeros(1)}}, LIKE)

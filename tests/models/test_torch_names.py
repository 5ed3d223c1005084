"""The rule between torch's names and Flax's, and what is said when weights do not fit."""

from __future__ import annotations

import numpy as np
import pytest

from jaxkd.models.torch_names import misfits, to_flax, to_torch

WEIGHTS = {
    "layer1.0.conv1.weight": np.arange(2 * 3 * 5 * 7, dtype=np.float32).reshape(2, 3, 5, 7),
    "layer1.0.bn1.weight": np.ones(2, np.float32),
    "layer1.0.bn1.running_var": np.full(2, 4, np.float32),
    "layer1.0.bn1.num_batches_tracked": np.array(9),
    "linear.weight": np.arange(6, dtype=np.float32).reshape(3, 2),
}
LIKE = {
    "params": {
        "layer1_0": {"conv1": {"kernel": np.zeros((5, 7, 3, 2))}, "bn1": {"scale": np.zeros(2)}},
        "fc": {"kernel": np.zeros((2, 3))},
    },
    "batch_stats": {"layer1_0": {"bn1": {"var": np.zeros(2)}}},
}


def test_names_and_layouts() -> None:
    variables = to_flax(WEIGHTS, LIKE)
    kernel = variables["params"]["layer1_0"]["conv1"]["kernel"]
    assert kernel[4, 6, 2, 1] == WEIGHTS["layer1.0.conv1.weight"][1, 2, 4, 6]
    # The head is called fc here and linear there.
    np.testing.assert_array_equal(variables["params"]["fc"]["kernel"], WEIGHTS["linear.weight"].T)
    assert variables["batch_stats"]["layer1_0"]["bn1"]["var"].tolist() == [4, 4]


def test_all_misfits_are_listed_at_once() -> None:
    weights = {**WEIGHTS, "extra.weight": np.zeros((2, 2)), "linear.weight": np.zeros((4, 2), np.float32)}
    del weights["layer1.0.bn1.weight"]
    with pytest.raises(ValueError, match="do not fit") as caught:
        to_flax(weights, LIKE)
    message = str(caught.value)
    assert "missing: params/layer1_0/bn1/scale" in message
    assert "not in the model: extra.weight" in message
    assert "linear.weight is (2, 4), the model needs (2, 3)" in message


def test_a_resnet_without_weights_in_its_shortcuts_is_recognised() -> None:
    like = {
        **LIKE,
        "params": {**LIKE["params"], "layer2_0": {"downsample_0": {"kernel": np.zeros((1, 1, 2, 2))}}},
    }
    assert "--shortcut A" in misfits(WEIGHTS, like)
    assert "--shortcut" not in misfits({**WEIGHTS, "extra.weight": np.zeros((2, 2))}, LIKE)


def test_the_other_direction() -> None:
    weights = to_torch(to_flax(WEIGHTS, LIKE))
    # The model calls its head fc, and torch counts batches by itself.
    expected = {
        name.replace("linear", "fc"): w for name, w in WEIGHTS.items() if not name.endswith("tracked")
    }
    assert weights.keys() == expected.keys()
    for name, weight in weights.items():
        np.testing.assert_array_equal(weight, expected[name])
        assert weight.flags.c_contiguous


def test_only_a_single_head_is_renamed() -> None:
    like = {"params": {"fc": {"kernel": np.zeros((2, 3))}}}
    single = {"classifier.1.weight": np.ones((3, 2), np.float32)}
    assert to_flax(single, like)["params"]["fc"]["kernel"].all()
    two = {"classifier.0.weight": np.ones((3, 2)), "classifier.3.weight": np.ones((3, 2))}
    with pytest.raises(ValueError, match=r"not in the model: classifier\.0\.weight, classifier\.3\.weight"):
        to_flax(two, like)


@pytest.mark.parametrize("projection", ["downsample", "shortcut"])
def test_projections_have_two_names(projection: str) -> None:
    like = {"params": {"layer2_0": {"downsample_0": {"kernel": np.zeros((1, 1, 2, 3))}}}}
    weights = {f"layer2.0.{projection}.0.weight": np.ones((3, 2, 1, 1), np.float32)}
    assert to_flax(weights, like)["params"]["layer2_0"]["downsample_0"]["kernel"].all()
    like = {"params": {"layer2_0": {"shortcut_0": {"kernel": np.zeros((1, 1, 2, 3))}}}}
    assert to_flax(weights, like)["params"]["layer2_0"]["shortcut_0"]["kernel"].all()


def test_weights_of_both_names_are_not_taken_for_one() -> None:
    like = {"params": {"layer2_0": {"downsample_0": {"kernel": np.zeros((1, 1, 2, 3))}}}}
    one = {"layer2.0.downsample.0.weight": np.ones((3, 2, 1, 1))}
    with pytest.raises(ValueError, match=r"not in the model: layer2\.0\.shortcut\.0\.weight"):
        to_flax({**one, "layer2.0.shortcut.0.weight": np.ones((3, 2, 1, 1))}, like)
    with pytest.raises(ValueError, match=r"twice: layer2\.0\.downsample\.0\.weight and layer2_0\.down"):
        to_flax({**one, "layer2_0.downsample_0.weight": np.ones((3, 2, 1, 1))}, like)


@pytest.mark.parametrize(
    ("name", "weight", "message"),
    [
        ("linear.weight", np.full((3, 2), np.nan), r"linear\.weight has 6 of 6 values that are not finite"),
        ("linear.weight", np.full((3, 2), 1e300), r"linear\.weight has 6 of 6 values that are not finite"),
        (
            "linear.weight",
            np.ones((3, 2), np.complex64),
            r"linear\.weight is of type complex64; weights must be",
        ),
        ("linear.weight", np.full((3, 2), "a"), r"linear\.weight is of type <U1; weights must be"),
        ("linear.weight", np.ones((3, 2), np.int8), r"linear\.weight is of type int8; .*not quantised"),
        ("layer1.0.bn1.running_var", np.array([1.0, -4.0]), r"bn1\.running_var has the negative variance -4"),
    ],
)
def test_weights_that_are_no_weights_are_named(name: str, weight: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        to_flax({**WEIGHTS, name: weight}, LIKE)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ">f4"])
def test_other_floats_become_float32_in_memory_of_their_own(dtype: object) -> None:
    given = WEIGHTS["linear.weight"].astype(dtype)
    got = to_flax({**WEIGHTS, "linear.weight": given}, LIKE)["params"]["fc"]["kernel"]
    assert got.dtype == np.float32
    assert got.flags.writeable
    assert got.flags.c_contiguous
    np.testing.assert_array_equal(got, WEIGHTS["linear.weight"].T)

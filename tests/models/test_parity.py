"""The networks against torch models that were run once in float64."""

from __future__ import annotations

import parity
import pytest

# Name to tolerance in training mode.  Where the last maps have few pixels, batch norm sees few values a
# channel (16 in MobileNetV2, 4 in imagenet_resnet18), and magnifies the rounding of all layers before.
RECORDED = {
    "resnet8": 2e-6, "resnet14": 2e-6, "resnet8x4": 2e-6, "wrn_16_1": 2e-6, "wrn_16_2": 2e-6, "vgg8": 4e-6,
    "ShuffleV1": 2e-5, "ShuffleV2": 2e-5, "MobileNetV2": 5e-5, "ResNet50": 6e-5, "imagenet_resnet18": 6e-5,
}  # fmt: skip


@pytest.mark.parametrize("name", RECORDED)
def test_outputs_and_statistics_are_those_of_the_torch_models(name: str) -> None:
    found = parity.deviations(name)
    assert found["logits"] < 3e-6
    assert found["pooled"] < 3e-6
    assert found["features"] < 3e-6
    assert found["training logits"] < RECORDED[name]
    assert found["statistics"] < RECORDED[name]


def test_all_records_are_used() -> None:
    assert {"", *RECORDED} == set(parity.recorded())

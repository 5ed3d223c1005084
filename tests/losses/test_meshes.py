"""Every loss on eight devices: right, without a gather of logits, and with the work divided."""

import meshes
import pytest
from loss_table import ROWS, STRUCTURAL

# The ways that between them shard every axis, on both kinds of mesh axes and by hand.
QUICK = (
    "jit, explicit axes: batch and vocabulary",
    "jit, auto axes: batch and vocabulary",
    "shard_map: batch and vocabulary",
    "pmap: batch",
)


def check(mode, names):
    result = meshes.outcome(mode, names)
    wrong = {name: error for name, error in result.deviation.items() if not error < 2e-4}
    assert not wrong
    # Gram matrices of examples or of classes need both sides of every pair.
    if not any(ROWS[name].gram for name in names):
        assert result.moved == []
    assert result.divided > 4


def rows(mode, gram):
    excluded = meshes.WITHOUT_AXIS_NAME if meshes.MODES[mode].axis_name else ()
    return [name for name in STRUCTURAL if ROWS[name].gram == gram and name not in excluded]


@pytest.mark.parametrize("mode", QUICK)
def test_on_eight_devices(mode):
    check(mode, rows(mode, gram=False))


def test_gram_matrices_on_eight_devices():
    check("jit, explicit axes: tokens", ["class_correlation", "batch_correlation"])
    check("shard_map: batch and vocabulary", ["batch_correlation"])


@pytest.mark.slow
@pytest.mark.parametrize("gram", [False, True])
@pytest.mark.parametrize("mode", meshes.MODES)
def test_in_every_mode(mode, gram):
    check(mode, rows(mode, gram))

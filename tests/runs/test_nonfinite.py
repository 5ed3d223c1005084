"""NaN and infinity: the step, the term, the batch, and the place in the code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import silent
from steps import start, task

import jaxkd
from jaxkd import data
from jaxkd.config import DistillConfig, TrainConfig
from jaxkd.data.batch import Batch
from jaxkd.devices import share
from jaxkd.runs import NonFiniteError, nonfinite


def test_a_poisoned_teacher_leaves_the_batch_that_saw_it(tmp_path: Path) -> None:
    dataset = helpers.tiny_dataset()

    def poison(variables: dict[str, Any]) -> dict[str, Any]:
        return jax.tree.map(lambda leaf: leaf.at[..., 0].set(jnp.nan), variables)

    teacher = helpers.untrained_teacher(tmp_path / "teacher", dataset, change=poison)
    config = DistillConfig(
        teacher=str(teacher), run=tmp_path / "run", batch_size=16, devices=1, epochs=2, seed=3
    )
    with pytest.raises(
        NonFiniteError, match=r"(?s)step 0: the teacher's logits .*Its batch is in .*with --debug"
    ):
        jaxkd.distill(config, dataset, say=silent)
    kept = json.loads((tmp_path / "run" / "nonfinite.json").read_text())
    ids = data.epoch_order(40, seed=3, epoch=1)[:16]
    assert (kept["step"], kept["epoch"], kept["seed"], kept["checkpoint"]) == (0, 1, 3, None)
    assert kept["ids"] == ids.tolist()
    assert kept["labels"] == dataset.splits["train"].labels[ids].tolist()
    assert kept["sums_of_the_epoch"]["kd"] == "nan"
    assert np.isfinite(kept["sums_of_the_epoch"]["ce"])


def test_debug_goes_to_the_step_that_diverged_and_shows_the_place(tmp_path: Path) -> None:
    """A rate that is far too large, met in the midst of a run; then the same configuration with --debug."""
    dataset = helpers.tiny_dataset()
    options: dict[str, Any] = {"model": "resnet8", "run": tmp_path / "run", "batch_size": 16, "devices": 1}
    options |= {"epochs": 50, "log_every": 1, "checkpoint_seconds": 0, "learning_rate": 1e18}
    told = []
    for debug in (False, True):
        with pytest.raises(NonFiniteError, match=r"the last good checkpoint is step \d+") as caught:
            jaxkd.train(TrainConfig(**options, debug=debug), dataset, say=silent)
        told.append(str(caught.value).split(". To fix it")[0])
        kept = json.loads((tmp_path / "run" / "nonfinite.json").read_text())
        assert kept["step"] >= kept["checkpoint"] > 0
        epoch, place = divmod(kept["step"], 3)
        order = data.epoch_order(40, seed=0, epoch=epoch + 1)
        assert kept["ids"] == order[16 * place : 16 * (place + 1)].tolist()
    assert told[0] == told[1]
    assert "infinity first: invalid value (inf) encountered in" in str(caught.value)
    assert "/jaxkd/" in str(caught.value)
    assert "\n".join(kept["where"]) == str(caught.value).split("nonfinite.json.\n")[1]


def test_the_place_is_where_the_teacher_was_poisoned() -> None:
    dataset = helpers.tiny_dataset()
    made = task(dataset)
    state, frozen = jax.device_get(start(made, dataset))
    train = dataset.splits["train"]
    resident = train.images, train.labels.astype(np.int32)
    batch = Batch(ids=share(np.arange(16), 2))
    clean = nonfinite.where_it_arises(made, state, frozen, resident, batch)
    assert clean[0] == "NaN: none, one operation at a time"
    norm = frozen.teacher["params"]["stage2_norm"]
    norm["scale"] = np.full_like(norm["scale"], np.inf)
    poisoned = nonfinite.where_it_arises(made, state, frozen, resident, batch)
    assert "invalid value (nan) encountered in" in poisoned[0]
    assert "jaxkd/models" in poisoned[0]

"""Batches that lie on the device, and batches that are streamed to it: the same; exact evaluation of both."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import helpers
import jax
import numpy as np
import pytest
from helpers import silent

import jaxkd
from jaxkd import data, teachers
from jaxkd.data.batch import fetch
from jaxkd.data.feed import open_feed
from jaxkd.data.order import batches
from jaxkd.data.streaming import in_memory
from jaxkd.runs import evaluate


def test_streamed_batches_are_the_resident_ones() -> None:
    train = helpers.tiny_dataset(num_train=44).splits["train"]
    steps = batches(data.epoch_order(44, seed=3, epoch=2), 16)
    devices = jax.local_devices()
    resident, streamed = (open_feed(train, devices, seed=3, stream=stream) for stream in (False, True))
    assert streamed.resident is None
    pairs = list(zip(resident(steps, 2), streamed(steps, 2), strict=True))
    assert len(pairs) == 3
    for lying, brought in pairs:
        np.testing.assert_array_equal(lying.ids, brought.ids)
        assert lying.ids.shape == (8, 2)
        fetched = fetch((train.images, train.labels), lying)
        real = lying.ids >= 0
        np.testing.assert_array_equal(np.asarray(fetched.images)[real], brought.images[real])
        np.testing.assert_array_equal(np.asarray(fetched.labels)[real], brought.labels[real])


def test_a_run_may_change_from_resident_to_streamed_and_ends_with_the_same_bits(tmp_path: Path) -> None:
    common: dict[str, Any] = {"model": helpers.Tiny(), "data": helpers.tiny_dataset(), "say": silent}
    common |= {"epochs": 2, "batch_size": 16, "devices": 2, "log_every": 2}
    results = {
        run: jaxkd.train(run=tmp_path / run, **common, **more)
        for run, more in {
            "resident": {},
            "streamed": {"stream": True},
            "several": {"stream": True, "steps_per_call": 2},
        }.items()
    }
    digests = [
        teachers.load(tmp_path / run, network=helpers.Tiny()).digest for run in ("resident", "streamed")
    ]
    assert digests[0] == digests[1]
    assert results["resident"]["last_ce"] == results["streamed"]["last_ce"]
    assert results["several"]["last_ce"] == pytest.approx(results["resident"]["last_ce"], rel=0.02)


def test_evaluation_is_exact_for_ten_thousand_images_on_eight_devices() -> None:
    dataset = helpers.tiny_dataset(num_train=8, num_test=10_000)
    teacher = helpers.tiny_teacher(dataset)
    test = dataset.splits["test"]
    assert isinstance(test, data.Split)
    logits = np.concatenate([np.asarray(teacher.logits(part)) for part in np.split(test.images, 4)])
    correct = int((logits.argmax(1) == test.labels).sum())
    assert 0 < correct < 10_000
    streamed = dataclasses.replace(dataset, splits={"test": in_memory(test.images, test.labels)})
    for source in (dataset, streamed):
        scores = evaluate(teacher, source, batch_size=96, devices=8)
        assert scores["accuracy"] == pytest.approx(correct / 100, abs=1e-9)

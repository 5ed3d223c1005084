"""Views and orders depend on (seed, epoch, example id) and on nothing else."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import data, models
from jaxkd.data.augment import as_views, is_numbered
from jaxkd.data.order import batches

IMAGES = jax.random.randint(jax.random.key(0), (32, 8, 8, 3), 1, 256).astype(jnp.uint8)
IDS = jnp.arange(100, 132)
CROP = data.CropFlip(padding=2, flip=True)


def eager(images: jax.Array, ids: jax.Array, seed: int = 1, epoch: int = 1) -> jax.Array:
    return data.augment(CROP, images, ids, seed=seed, epoch=epoch)


views = jax.jit(eager)


def test_a_view_does_not_depend_on_batch_jit_or_devices() -> None:
    whole = eager(IMAGES, IDS)
    shuffled = jnp.array([5, 3, 31, 0])
    np.testing.assert_array_equal(views(IMAGES[shuffled], IDS[shuffled]), whole[shuffled])
    np.testing.assert_array_equal(views(IMAGES, IDS), whole)
    shared = jax.pmap(eager)(IMAGES.reshape(8, 4, 8, 8, 3), IDS.reshape(8, 4))
    np.testing.assert_array_equal(shared.reshape(whole.shape), whole)


def test_a_view_does_not_depend_on_the_default_generator() -> None:
    whole = views(IMAGES, IDS)
    with jax.default_prng_impl("rbg"):
        np.testing.assert_array_equal(views(IMAGES, IDS), whole)
        np.testing.assert_array_equal(views(IMAGES[:1], IDS[:1]), whole[:1])


def test_seed_epoch_and_id_change_it() -> None:
    whole = views(IMAGES, IDS)
    for other in (views(IMAGES, IDS, seed=2), views(IMAGES, IDS, epoch=2), views(IMAGES, IDS + 1)):
        assert (np.asarray(other) != np.asarray(whole)).any(axis=(1, 2, 3)).mean() > 0.9


def test_every_view_is_a_crop_of_the_padded_image_and_all_of_them_occur() -> None:
    image = np.asarray(IMAGES[0])
    padded = np.pad(image, ((2, 2), (2, 2), (0, 0)))
    crops = {padded[y : y + 8, x : x + 8].tobytes(): (y, x, 0) for y in range(5) for x in range(5)}
    crops |= {padded[y : y + 8, x : x + 8][:, ::-1].tobytes(): (y, x, 1) for y in range(5) for x in range(5)}
    count = 4000
    many = views(jnp.broadcast_to(IMAGES[0], (count, 8, 8, 3)), jnp.arange(count))
    seen = np.array([crops[np.asarray(view).tobytes()] for view in many])
    counts = np.unique(seen, axis=0, return_counts=True)[1]
    # 50 equally likely views: 80 of each expected, standard deviation 9.
    assert len(counts) == 50
    assert counts.min() > 40
    assert counts.max() < 125


def test_no_padding_and_no_flip_leave_images_alone() -> None:
    same = data.augment(data.CropFlip(padding=0, flip=False), IMAGES, IDS, seed=0, epoch=1)
    np.testing.assert_array_equal(same, IMAGES)
    with pytest.raises(ValueError, match="padding must be at least 0 pixels, got -1"):
        data.CropFlip(padding=-1)


def test_normalize_is_the_textbook_formula() -> None:
    mean, std = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
    expected = (np.asarray(IMAGES, np.float64) / 255 - mean) / std
    np.testing.assert_allclose(models.normalize(IMAGES, mean, std), expected, atol=2e-6)


def test_an_order_is_a_permutation_of_its_own() -> None:
    order = functools.partial(data.epoch_order, 1000)
    first = order(seed=0, epoch=1)
    assert sorted(first) == list(range(1000))
    np.testing.assert_array_equal(order(seed=0, epoch=1), first)
    for other in (order(seed=1, epoch=1), order(seed=0, epoch=2)):
        assert (other == first).mean() < 0.02
    # Raw Philox words never change: neither may the order of a recorded run.
    assert data.epoch_order(8, seed=0, epoch=1).tolist() == [5, 3, 7, 2, 4, 1, 0, 6]


def test_batches_hold_every_example_once() -> None:
    cut = batches(data.epoch_order(29, seed=0, epoch=1), 8)
    assert cut.shape == (4, 8)
    assert sorted(cut[cut >= 0]) == list(range(29))
    assert (cut[:3] >= 0).all()


@pytest.mark.parametrize("padding", [0, 1, 2])
@pytest.mark.parametrize("flip", [False, True])
def test_every_number_is_the_view_that_it_says(padding: int, flip: bool) -> None:
    crop = data.CropFlip(padding, flip)
    image = np.arange(1, 3 * 4 * 2 + 1, dtype=np.uint8).reshape(3, 4, 2)
    padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)))
    offsets = range(2 * padding + 1)
    crops = [padded[y : y + 3, x : x + 4] for y in offsets for x in offsets]
    expected = [shown for crop in crops for shown in ([crop, crop[:, ::-1]] if flip else [crop])]
    assert crop.count == len(expected) == len({shown.tobytes() for shown in expected})
    many = jnp.broadcast_to(image, (crop.count, *image.shape))
    shown = jax.jit(jax.vmap(crop.take))(many, jnp.arange(crop.count))
    np.testing.assert_array_equal(shown, expected)
    drawn = data.outcomes(crop, jnp.arange(5000), seed=3, epoch=2)
    assert set(drawn.tolist()) == set(range(crop.count))


def test_views_of_other_names_are_drawn_independently() -> None:
    main, other = (data.augment(CROP, IMAGES, IDS, seed=1, epoch=1, view=view) for view in ("main", "strong"))
    np.testing.assert_array_equal(main, views(IMAGES, IDS))
    assert (np.asarray(other) != np.asarray(main)).any(axis=(1, 2, 3)).mean() > 0.9


def test_augmentations_follow_one_another_and_anybodys_function_is_one() -> None:
    def darker(key: jax.Array, image: jax.Array) -> jax.Array:
        return (image * jax.random.uniform(key)).astype(jnp.uint8)

    both = data.augment(data.Compose((CROP, darker)), IMAGES, IDS, seed=1, epoch=1)
    assert both.shape == IMAGES.shape
    assert both.mean() < IMAGES.mean()
    assert not is_numbered(darker)
    assert not is_numbered(data.Compose((CROP, darker)))
    assert is_numbered(data.Identity())
    shape = (8, 8, 1)
    assert as_views(darker, ("main", "strong"), CROP, shape) == {"main": darker, "strong": darker}
    with pytest.raises(ValueError, match="no view weak: the method has the views main"):
        as_views({"weak": CROP}, ("main",), CROP, shape)
    with pytest.raises(TypeError, match=r"must be called as augmentation\(key, image\), got int"):
        as_views(3, ("main",), CROP, shape)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda key, image: image / 255,
        lambda key, image: image + jax.random.normal(key, image.shape),
        lambda key, image: image.astype(jnp.int32) + 7,
        lambda key, image: image[:6, :6],
        lambda key, image: (image, key),
    ],
)
def test_what_is_no_image_of_eight_bits_and_the_same_shape_is_no_view(wrong: Any) -> None:
    for given, default in ((wrong, CROP), (None, wrong)):
        with pytest.raises(ValueError, match=r"view main must return an image like .*uint8.* got .*; end it"):
            as_views(given, ("main",), default, (8, 8, 1))


@pytest.mark.parametrize(
    "augmentation", [CROP, data.RandAugment(hole=0.5)], ids=lambda one: type(one).__name__
)
def test_views_do_not_depend_on_the_processs_precision(augmentation: data.Augmentation) -> None:
    def drawn() -> np.ndarray:
        return np.asarray(
            jax.jit(functools.partial(data.augment, augmentation, seed=1, epoch=2))(IMAGES, IDS)
        )

    usual = drawn()
    with jax.enable_x64(True):
        np.testing.assert_array_equal(drawn(), usual)

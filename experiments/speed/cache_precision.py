"""What the precision of cached logits does to the adaptive-temperature loss.

    python experiments/speed/cache_precision.py teachers/resnet56 --data cifar100 --data-dir DIR

Real logits of a teacher on the views of one epoch, and a student that agrees with it in part (0.6 of its
logits plus noise of their size).  Loss, temperature and gradient with rounded logits, against float32.
"""

from __future__ import annotations

import argparse

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd import data, losses, teachers, temperature
from jaxkd.logits import standardize


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("teacher")
    parser.add_argument("--data", default="digits")
    parser.add_argument("--data-dir")
    parser.add_argument("--images", type=int, default=2048)
    args = parser.parse_args()
    teacher = teachers.load(args.teacher)
    dataset = data.load(args.data, data_dir=args.data_dir, splits=("train",))
    ids = jnp.arange(min(args.images, len(dataset.splits["train"])))
    images = dataset.splits["train"].images[: len(ids)]
    views = data.augment(dataset.augmentation, jnp.asarray(images), ids, seed=0, epoch=1)
    exact = jnp.concatenate([teacher.logits(views[i : i + 256]) for i in range(0, len(ids), 256)])
    noise = np.random.default_rng(0).standard_normal(exact.shape).astype(np.float32)
    student = 0.6 * exact + noise * exact.std()

    @jax.jit
    def values(s: jax.Array, t: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        def loss(s: jax.Array) -> jax.Array:
            return losses.kd(s, t, temperature=temperature.max_logit, standardize=True)

        tau = temperature.max_logit(standardize(s), standardize(t))[..., 0]
        return loss(s), tau, jax.grad(lambda s: loss(s).sum())(s)

    reference = values(student, exact)
    whole = len(ids) - len(ids) % 64
    print(f"{len(ids)} views, largest |logit| {float(jnp.abs(exact).max()):.1f}")
    print("| precision | loss: mean | worst example | of the batches' mean | temperature: worst | gradient |")
    print("|:--|--:|--:|--:|--:|--:|")
    for dtype in ("float16", "bfloat16"):
        loss, tau, gradient = values(student, exact.astype(dtype).astype(jnp.float32))
        relative = jnp.abs(loss / reference[0] - 1)
        means = [values[:whole].reshape(-1, 64).mean(1) for values in (loss, reference[0])]
        of_batches = jnp.abs(means[0] / means[1] - 1).max()
        worst_tau = jnp.abs(tau / reference[1] - 1).max()
        off = jnp.linalg.norm(gradient - reference[2]) / jnp.linalg.norm(reference[2])
        cells = [relative.mean(), relative.max(), of_batches, worst_tau, off]
        print(f"| {dtype} | " + " | ".join(f"{float(cell):.1e}" for cell in cells) + " |")


if __name__ == "__main__":
    main()

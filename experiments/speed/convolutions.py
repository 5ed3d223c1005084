"""Ways to write a 3x3 convolution and its gradients, on a CPU.

    python experiments/speed/convolutions.py

Milliseconds for batch 64, medians of interleaved repeats, of one layer each of a CIFAR ResNet and of a WRN.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

from jaxkd import tune_cpu

tune_cpu()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402

BATCH = 64
LAYERS = ((32, 16), (16, 32), (8, 64), (32, 32))  # height and width, channels
NHWC = ("NHWC", "HWIO", "NHWC")
ONE = ((1, 1), (1, 1))


def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), ONE, dimension_numbers=NHWC)


def shifts(x: jax.Array) -> list[list[jax.Array]]:
    padded = jnp.pad(x, ((0, 0), *ONE, (0, 0)))
    _, h, w, _ = x.shape
    return [[padded[:, i : i + h, j : j + w] for j in range(3)] for i in range(3)]


def patches(x: jax.Array) -> jax.Array:
    return jnp.concatenate([shift for row in shifts(x) for shift in row], axis=-1)


def forward_shifts(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return sum(shift @ kernel[i, j] for i, row in enumerate(shifts(x)) for j, shift in enumerate(row))


def forward_patches(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return patches(x) @ kernel.reshape(-1, kernel.shape[-1])


def forward_pairs(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Two pixels of a row at once: twice the outputs, from a window of four columns."""
    wide = [jnp.pad(kernel, ((0, 0), (place, 1 - place), (0, 0), (0, 0))) for place in range(2)]
    y = jax.lax.conv_general_dilated(x, jnp.concatenate(wide, -1), (1, 2), ONE, dimension_numbers=NHWC)
    return y.reshape(*x.shape[:3], -1)


def input_gradient(x: jax.Array, kernel: jax.Array, g: jax.Array) -> jax.Array:
    return jax.vjp(lambda x: convolve(x, kernel), x)[1](g)[0]


def input_gradient_canonical(x: jax.Array, kernel: jax.Array, g: jax.Array) -> jax.Array:
    return convolve(g, jnp.flip(kernel, (0, 1)).swapaxes(2, 3))


def kernel_gradient(x: jax.Array, kernel: jax.Array, g: jax.Array) -> jax.Array:
    return jax.vjp(lambda kernel: convolve(x, kernel), kernel)[1](g)[0]


def kernel_gradient_canonical(x: jax.Array, kernel: jax.Array, g: jax.Array) -> jax.Array:
    return convolve(x.transpose(3, 1, 2, 0), g.transpose(1, 2, 0, 3)).transpose(1, 2, 0, 3)


def kernel_gradient_shifts(x: jax.Array, kernel: jax.Array, g: jax.Array) -> jax.Array:
    return jnp.stack([jnp.stack([jnp.einsum("nhwi,nhwo->io", s, g) for s in row]) for row in shifts(x)])


def kernel_gradient_patches(x: jax.Array, kernel: jax.Array, g: jax.Array) -> jax.Array:
    return jnp.einsum("nhwk,nhwo->ko", patches(x), g).reshape(kernel.shape)


def kernel_gradient_shifted_outputs(x: jax.Array, kernel: jax.Array, g: jax.Array) -> jax.Array:
    padded = jnp.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0)))
    columns = jnp.concatenate(shifts(g)[1], axis=-1)
    h, c = x.shape[1], x.shape[-1]
    rows = [jnp.einsum("nhwi,nhwo->io", padded[:, i : i + h], columns) for i in range(3)]
    return jnp.stack([row.reshape(c, 3, -1).swapaxes(0, 1)[::-1] for row in rows])


WAYS: dict[str, tuple[Callable[..., jax.Array], ...]] = {
    "forward": (convolve, forward_pairs, forward_shifts, forward_patches),
    "gradient of the input": (input_gradient, input_gradient_canonical),
    "gradient of the kernel": (
        kernel_gradient,
        kernel_gradient_canonical,
        kernel_gradient_shifted_outputs,
        kernel_gradient_patches,
        kernel_gradient_shifts,
    ),
}


def milliseconds(
    functions: tuple[Callable[..., jax.Array], ...], arguments: tuple, repeats: int
) -> list[float]:
    """Medians; the functions must agree."""
    compiled = [jax.jit(function).lower(*arguments).compile() for function in functions]
    results = [function(*arguments).reshape(-1) for function in compiled]
    for result in results:
        assert jnp.allclose(result, results[0], rtol=1e-3, atol=1e-3 * jnp.abs(results[0]).max())
    times: list[list[float]] = [[] for _ in compiled]
    for _ in range(repeats):
        for seen, function in zip(times, compiled, strict=True):
            start = time.perf_counter()
            jax.block_until_ready(function(*arguments))
            seen.append(time.perf_counter() - start)
    return [1e3 * statistics.median(seen) for seen in times]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15)
    args = parser.parse_args()
    seen: dict[tuple[str, str], list[str]] = {}
    for size, width in LAYERS:
        keys = jax.random.split(jax.random.key(0), 3)
        x, g = (jax.random.normal(key, (BATCH, size, size, width)) for key in keys[:2])
        kernel = jax.random.normal(keys[2], (3, 3, width, width))
        for part, functions in WAYS.items():
            arguments: tuple[Any, ...] = (x, kernel) if part == "forward" else (x, kernel, g)
            for function, time_ in zip(
                functions, milliseconds(functions, arguments, args.repeats), strict=True
            ):
                seen.setdefault((part, function.__name__), []).append(f"{time_:.1f}")
    print(f"jax {jax.__version__}, {os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}\n")
    print("| | | " + " | ".join(f"{size}x{size}x{width}" for size, width in LAYERS) + " |")
    print("|:--|:--|" + "--:|" * len(LAYERS))
    for (part, name), cells in seen.items():
        print(f"| {part} | `{name}` | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()

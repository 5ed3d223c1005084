"""Draws how T^2 KL on z-scores tends to the correlation as T grows: docs/limit.svg.

    python experiments/correlation_limit/figure.py

Random logits, seed 0, 256 examples of 100 classes with one class that stands out, no training; float64, since
at a large T the KL divergence is a small difference of large numbers.  A few seconds on a CPU.
"""

from __future__ import annotations

import pathlib

import jax
import jax.numpy as jnp
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from jaxkd import losses, standardize, temperature

OUT = pathlib.Path(__file__).parents[2] / "docs" / "limit.svg"


def main() -> None:
    jax.config.update("jax_enable_x64", True)
    temperatures = jnp.geomspace(1.0, 256.0, 60)
    key_t, key_s = jax.random.split(jax.random.key(0))
    teacher = jax.random.normal(key_t, (256, 100)) + 6.0 * jax.nn.one_hot(jnp.arange(256) % 100, 100)
    noise = jax.random.normal(key_s, (256, 100))
    figure, axes = plt.subplots(figsize=(6.4, 4.0))
    for strength, colour in ((0.3, "tab:blue"), (0.6, "tab:orange"), (1.2, "tab:green")):
        student = teacher + strength * noise
        rho = float(jnp.mean(1 - losses.correlation(student, teacher) * 100 / 99))
        limit = jnp.mean(losses.correlation(student, teacher))
        curve = jax.vmap(
            lambda t, s=student: jnp.mean(losses.kd(s, teacher, temperature=t, standardize=True))
        )(temperatures)
        adaptive = {"temperature": temperature.max_logit, "standardize": True}
        point = jnp.mean(losses.kd(student, teacher, **adaptive))
        tau = jnp.mean(temperature.max_logit(standardize(student), standardize(teacher)))
        axes.plot(temperatures, curve / limit, color=colour, label=f"mean correlation {rho:.2f}")
        axes.plot(tau, point / limit, "o", color=colour)
    axes.axhline(1.0, color="black", linewidth=0.8, linestyle="--")
    axes.set_xscale("log", base=2)
    axes.set_xlabel("temperature T (dots: mean of the adaptive temperature)")
    axes.set_ylabel("T² KL / ((K-1)/K · (1 - correlation))")
    axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(OUT, metadata={"Date": None})


if __name__ == "__main__":
    main()

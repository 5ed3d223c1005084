# ---
# jupyter:
#   jupytext:
#     formats: py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # What the temperatures look like
#
# By image, by class, along training, and how close the loss is to the correlation of the logits.

# %%
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import jaxkd
from jaxkd import data, losses, standardize, teachers, temperature

teacher = teachers.load("digits-resnet20")
test = data.load("digits").splits["test"]
logits = teacher.logits(test.images)
z = standardize(logits)
taus = np.asarray(temperature.max_logit(z, z, of="teacher"))[:, 0]
print(f"{len(taus)} images: from {taus.min():.2f} to {taus.max():.2f}, mean {taus.mean():.2f}")

# %% [markdown]
# A teacher that is sure of one class gives a z-score near the bound, and a high temperature; one that
# doubts gives a low one. The images with the lowest and the highest temperature:

# %%
figure, row = plt.subplots(1, 8, figsize=(6.8, 1.6), layout="constrained")
order = np.argsort(taus)
for axes, index in zip(row, [*order[:4], *order[-4:]], strict=True):
    axes.imshow(test.images[index, :, :, 0], cmap="gray_r")
    guess = int(jnp.argmax(logits[index]))
    axes.set_title(f"T {taus[index]:.2f}\n{test.labels[index]}, seen as {guess}", fontsize=7)
    axes.axis("off")
plt.show()

# %% [markdown]
# By class:

# %%
figure, axes = plt.subplots(figsize=(6.8, 2.4), layout="constrained")
axes.boxplot(
    [taus[test.labels == label] for label in range(10)], tick_labels=[str(label) for label in range(10)]
)
axes.axhline(1.3660254 * 9 / 10**0.5, color="0.5", linewidth=0.8)  # the bound of ten classes
axes.set(xlabel="class", ylabel="temperature")
plt.show()

# %% [markdown]
# Along training, the temperature also follows the student's logits: the larger of both networks' z-scores
# counts.

# %%
from jaxkd.runs import figures
from jaxkd.runs.summary import read, summarise

jaxkd.distill(
    teacher="digits-resnet20",
    student="resnet8",
    method="atkd",
    data="digits",
    epochs=10,
    run="runs/taus/atkd",
)
figures.distribution(summarise(read(["runs/taus"])), "temperature")

# %% [markdown]
# The loss of each test image for the trained student, beside (K - 1) / K (1 - correlation of the two
# networks' logits), which it tends to as the temperature grows:

# %%
student = teachers.load("runs/taus/atkd")
seen = student.logits(test.images)
adaptive = losses.kd(seen, logits, temperature=temperature.max_logit, standardize=True)
limit = losses.correlation(seen, logits)
figure, axes = plt.subplots(figsize=(3.4, 3.0), layout="constrained")
axes.loglog(limit, adaptive, ".", markersize=3)
low, high = float(limit.min()), float(limit.max())
axes.plot([low, high], [low, high], color="0.5", linewidth=0.8)
axes.set(xlabel="(K - 1) / K (1 - correlation)", ylabel="adaptive loss")
plt.show()

# %%
apart = np.abs(adaptive - limit) / limit
median, most = 100 * np.median(apart), 100 * np.quantile(apart, 0.95)
print(f"apart by {median:.1f} % in the median, and by less than {most:.1f} % for 95 % of the images")

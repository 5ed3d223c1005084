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
# # Your own network, and your own loss
#
# A Flax module goes where a name would, and so does a function that computes a loss.

# %%
import flax.linen as nn
import jax.numpy as jnp

import jaxkd
from jaxkd import losses, methods


class Small(nn.Module):
    """Two convolutions, and what their pooled features say."""

    num_classes: int = 10

    @nn.compact
    def __call__(self, images):
        x = nn.relu(nn.Conv(16, (3, 3), strides=(2, 2))(images))
        x = nn.relu(nn.Conv(32, (3, 3), strides=(2, 2))(x))
        return nn.Dense(self.num_classes)(x.mean(axis=(1, 2)))


# %% [markdown]
# A loss of two terms: KD with the adaptive temperature, and a cross-entropy that counts an example more the
# less sure the teacher is of it. Each term has a value for every example; the step averages them, and
# leaves out what is padding.


# %%
def doubting(x):
    sure = jnp.max(nn.softmax(x.teacher_logits), axis=-1)
    kd = losses.kd(
        x.student_logits, x.teacher_logits, temperature=jaxkd.temperature.max_logit, standardize=True
    )
    ce = (2.0 - sure) * methods.cross_entropy(x.student_logits, x.labels)
    return {"ce": (ce, 0.1), "kd": (kd, 9.0)}


own = jaxkd.distill(
    teacher="digits-resnet20",
    student=Small(),
    method=methods.from_function(doubting, name="doubting"),
    data="digits",
    epochs=10,
    run="runs/own/doubting",
)
own

# %% [markdown]
# Beside a method that is known by name, in one table and figure.

# %%
jaxkd.distill(
    teacher="digits-resnet20", student=Small(), method="lskd", data="digits", epochs=10, run="runs/own/lskd"
)

# %%
from IPython.display import Markdown

from jaxkd.runs import figures, tables
from jaxkd.runs.summary import read, summarise

summary = summarise(read(["runs/own"]))
Markdown(tables.markdown(summary))

# %%
figures.accuracy(summary)

# %% [markdown]
# What was logged, a line for each look at the training and for each evaluation, ready for a `DataFrame`:

# %%
from pathlib import Path

from jaxkd.runs import read_metrics

read_metrics(Path("runs/own/doubting"))[-1]

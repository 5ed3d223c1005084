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
# # A first distillation in five minutes
#
# Handwritten digits (they come with scikit-learn), a pretrained teacher (it comes with jaxkd), and a
# student of less than a third of its size: alone, taught with the fixed temperature 4, and taught with the
# adaptive temperature.

# %%
import jaxkd
from jaxkd import teachers

teacher = teachers.load("digits-resnet20")
print(f"{teacher.name}: {teacher.description.test_accuracy:.2f} % on the test images")

# %% [markdown]
# One call is one run. It leaves a folder, and the same call goes on where it was stopped.

# %%
result = jaxkd.distill(
    teacher="digits-resnet20",
    student="resnet8",
    method="atkd",
    data="digits",
    epochs=10,
    run="runs/first/atkd",
)
result

# %% [markdown]
# The comparison. What is done already is not done again.

# %%
alone = jaxkd.train(model="resnet8", data="digits", epochs=10, run="runs/first/alone")
fixed = jaxkd.distill(
    teacher="digits-resnet20", student="resnet8", method="kd", data="digits", epochs=10, run="runs/first/kd"
)

# %%
from jaxkd.runs import figures
from jaxkd.runs.summary import read, summarise

summary = summarise(read(["runs/first"]))
figures.accuracy(summary)

# %% [markdown]
# What the temperatures were, and how they moved. With ten classes none can exceed 3.89.

# %%
figures.distribution(summary, "temperature")

# %% [markdown]
# The table. The digits are easy and few (one test image is 0.28 points) and there is one seed, so this
# shows that everything works, and not which method is better.

# %%
from IPython.display import Markdown

from jaxkd.runs import tables

Markdown(tables.markdown(summary))

# %% [markdown]
# The student is a teacher for the next run: `teachers.load("runs/first/atkd")`.

# %%
student = teachers.load("runs/first/atkd")
student.description

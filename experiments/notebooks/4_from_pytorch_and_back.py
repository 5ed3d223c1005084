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
# # From a PyTorch checkpoint to a student, and back
#
# Files of PyTorch weights become teachers, and trained students become such files. PyTorch is not needed,
# and nothing in a file is executed. To have a file at hand, this notebook first writes one; yours may be a
# `.pt`, `.pth`, `.safetensors` or `.npz` of the architectures that `jaxkd models` lists.

# %%
from pathlib import Path

import numpy as np

import jaxkd
from jaxkd import data, teachers

Path("files").mkdir(exist_ok=True)
teachers.export_torch(teachers.load("digits-resnet20"), Path("files/teacher.safetensors"))

# %% [markdown]
# On the command line this is `jaxkd import files/teacher.safetensors`, with `--model`, `--data`, `--mean`
# and `--std` for a file that does not say itself what it is.

# %%
about = teachers.described_in(Path("files/teacher.safetensors"))
variables = teachers.import_torch(
    Path("files/teacher.safetensors"),
    model=about.model,
    num_classes=about.num_classes,
    image_shape=about.image_shape,
)
teachers.save(Path("teachers/imported"), variables, about)
teacher = teachers.load("teachers/imported")
test = data.load("digits").splits["test"]
accuracy = 100 * float(np.mean(np.argmax(teacher.logits(test.images), axis=-1) == test.labels))
print(
    f"{teacher.name}: {about.model}, {accuracy:.2f} % of the test images; before {about.test_accuracy:.2f} %"
)

# %% [markdown]
# A student of it:

# %%
result = jaxkd.distill(
    teacher="teachers/imported",
    student="resnet8",
    method="atkd",
    data="digits",
    epochs=10,
    run="runs/torch/atkd",
)
result

# %% [markdown]
# And back. In PyTorch, `model.load_state_dict(safetensors.torch.load_file("files/student.safetensors"))`
# loads it into the same architecture of RepDistiller or mdistiller: names and layouts are torch's.

# %%
student = teachers.load("runs/torch/atkd")
teachers.export_torch(student, Path("files/student.safetensors"))

from safetensors.numpy import load_file

weights = load_file("files/student.safetensors")
{name: array.shape for name, array in list(weights.items())[:6]}

# %% [markdown]
# The same bits come back:

# %%
again = teachers.import_torch(
    Path("files/student.safetensors"), model="resnet8", num_classes=10, image_shape=(8, 8, 1)
)
teachers.save(Path("teachers/again"), again, student.description)
same = np.array_equal(teachers.load("teachers/again").logits(test.images), student.logits(test.images))
print("the same logits, bit for bit:", same)
assert same

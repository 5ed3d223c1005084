"""Teachers: pretrained networks with what has to be known of them, in a folder each.

A teacher is a description (`teacher.json`, see `jaxkd.teachers.record`), variables saved by Orbax, and the
digest of the variables.
Folders lie anywhere, or in the zoo, where they are found by name; a small one ships with the package.  Any
other function of images can be a teacher too, and PyTorch files are imported and exported.
"""

from jaxkd.teachers.exchange import described_in, export_torch, import_torch
from jaxkd.teachers.objects import from_checkpoint, from_function, from_keras, from_network
from jaxkd.teachers.stored import Entry, available, describe, load, locate, save, survey, zoo
from jaxkd.teachers.teacher import Description, Teacher

__all__ = [
    "Description",
    "Entry",
    "Teacher",
    "available",
    "describe",
    "described_in",
    "export_torch",
    "from_checkpoint",
    "from_function",
    "from_keras",
    "from_network",
    "import_torch",
    "load",
    "locate",
    "save",
    "survey",
    "zoo",
]

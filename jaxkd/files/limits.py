"""How much a file of weights or data may ask for; docs/teachers.md publishes these numbers.

Whatever is made while a file is read is bounded by the bytes that it really holds, or by one of these.
"""

MIB = 1 << 20

# All members of a zip (.pt, .npz) together may unpack to this much and this many times the file's size.
UNPACKED_BYTES = 64 * MIB
UNPACKED_RATIO = 100
ZIP_MEMBERS = 100_000

# Of a pickle: instructions, nesting of its result, values in it when shared ones are counted each time.
PICKLE_OPCODES = 500_000
NESTING = 64
UNROLLED_VALUES = 1_000_000
INTEGER_BYTES = 128
NAME_LENGTH = 1_000

# Tensors may be views of one storage: different views may name this many times the bytes of all storages.
SHARED_RATIO = 4
DIMENSIONS = 32

SAFETENSORS_HEADER_BYTES = 16 * MIB
NPY_HEADER_BYTES = 10_000

# Of a JSON file of ours.
RECORD_BYTES = 64 * MIB

"""Files that nobody vouches for, read within limits, and files of our own, written whole or not at all.

Nothing here needs JAX: `whole` writes and replaces, `records` are the JSON files that decide on something,
`pickles`, `tensors`, `archives` and `npz` read what others wrote, and `limits` says how much of it.
"""

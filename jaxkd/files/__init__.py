"""Untrusted files, read within limits, and jaxkd's own files, written atomically.

Nothing here needs JAX: `whole` writes and replaces, `records` are the JSON files that decide on something,
`pickles`, `tensors`, `archives` and `npz` read what others wrote, and `limits` says how much of it.
"""

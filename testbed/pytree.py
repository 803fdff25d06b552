"""Dataclasses as pytrees, told apart by their class."""

import dataclasses
import functools
from collections.abc import Sequence

import jax


def register(cls: type | None = None, *, meta: Sequence[str] = ()):
    """Make a dataclass a pytree, as a decorator above `@dataclass`; the fields in `meta` are static.

    Why not `jax.tree_util.register_dataclass`: structures of two classes registered there compare as
    equal if their fields do (JAX 0.10.2). Only their hashes differ. Now and then `jit` then ran the
    program of one class on the other, silently. A class registered here is compared by its class.
    """
    if cls is None:
        return functools.partial(register, meta=meta)
    data = [field.name for field in dataclasses.fields(cls) if field.name not in meta]

    def flatten(value):
        return [getattr(value, name) for name in data], tuple(getattr(value, name) for name in meta)

    def flatten_with_keys(value):
        children, static = flatten(value)
        return [(jax.tree_util.GetAttrKey(name), child) for name, child in zip(data, children, strict=True)], static

    def unflatten(static, children):
        # Without __init__: JAX also builds values whose fields are placeholders.
        value = object.__new__(cls)
        for name, field in (*zip(data, children, strict=True), *zip(meta, static, strict=True)):
            object.__setattr__(value, name, field)
        return value

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    return cls

"""Dataclasses as pytrees: each class has its own programs."""

import dataclasses

import jax
import jax.numpy as jnp

from testbed.pytree import register


def scaled(times):
    """A class of its own, of the same fields as all others that this makes."""

    @register(meta=["name"])
    @dataclasses.dataclass(frozen=True)
    class Scaled:
        value: jax.Array
        name: str = "it"

        def __call__(self, x):
            return times * self.value * x

    return Scaled


def test_classes_of_the_same_fields_have_different_structures_and_programs():
    classes = [scaled(float(times)) for times in range(100)]
    run = jax.jit(lambda model, x: model(x))
    assert [float(run(one(jnp.ones(())), 1.0)) for one in classes] == list(range(100))
    assert len({jax.tree.structure(one(0.0)) for one in classes}) == 100


def test_a_value_comes_back_whole_and_leaves_have_names():
    model = scaled(2.0)(jnp.arange(3.0), name="mine")
    [(path, leaf)], structure = jax.tree_util.tree_flatten_with_path(model)
    assert jax.tree_util.keystr(path) == ".value" and (leaf == jnp.arange(3.0)).all()
    again = jax.tree.unflatten(structure, [leaf])
    assert type(again) is type(model) and again.name == "mine"
    assert structure != jax.tree.structure(dataclasses.replace(model, name="other"))


def test_nothing_here_is_registered_in_the_other_way():
    from test_layering import FILES

    with_it = [path.name for path in FILES if "register_dataclass" in path.read_text()]
    assert with_it == ["pytree.py"], "that one only says why not"

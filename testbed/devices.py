"""Devices: an axis of independent members (seeds, radii, prompts, attackers) is divided over all that JAX sees."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec

AXIS = "members"


def _mesh(devices: int) -> jax.sharding.Mesh:
    return jax.make_mesh((devices,), (AXIS,), (AxisType.Auto,), devices=jax.devices()[:devices])


def spread(function: Callable[..., Any], shared: Any, *members: Any, multiple: int = 1) -> Any:
    """`function(shared, *members)`, each device doing its part of the members' leading axis; for use under `jax.jit`.

    Args:
      function: treats each member by itself; every array that it returns has the members as leading axis.
      shared: a pytree that every device gets whole.
      members: pytrees with one leading axis `[n, ...]`; it is filled up with repeats, so that every device gets the
        same number, a multiple of `multiple`.
    """
    devices, n = jax.device_count(), len(jax.tree.leaves(members)[0])
    part = devices * multiple
    filled = jnp.arange(-(-n // part) * part) % n
    members = jax.tree.map(lambda a: jnp.asarray(a)[filled], members)
    if devices > 1:
        specs = (PartitionSpec(), *(PartitionSpec(AXIS) for _ in members))
        every = PartitionSpec(AXIS)
        function = jax.shard_map(function, mesh=_mesh(devices), in_specs=specs, out_specs=every, check_vma=False)
    return jax.tree.map(lambda a: a[:n], function(shared, *members))


@partial(jax.jit, static_argnames=("function", "together"))
def population(function: Callable[..., Any], *members: Any, together: int = 1) -> Any:
    """`function` of every member, divided over the devices; how many there are changes no more than a last bit.

    Args:
      function: pure and unbatched, of one member: a key, a radius, a model, or several of them.
      members: pytrees of its arguments stacked along a leading axis `[n, ...]`.
      together: members that a device takes at a time, vmapped. A CPU does small models best one by one; an accelerator
        wants many. It may change the rounding of a sum, so it is the caller's choice, and not the machine's.
    """

    def part(_, *mine):
        groups = jax.tree.map(lambda a: a.reshape(len(a) // together, together, *a.shape[1:]), mine)
        done = jax.lax.map(lambda group: jax.vmap(function)(*group), groups)
        return jax.tree.map(lambda a: a.reshape(len(a) * together, *a.shape[2:]), done)

    return spread(part, (), *members, multiple=together)


def over_devices(array: jax.Array) -> jax.Array:
    """The same array, its leading axis laid over as many devices as divide it: what is computed from it follows.

    Inside a program that is being traced it changes nothing.
    """
    devices = math.gcd(len(array), jax.device_count())
    if devices == 1 or isinstance(array, jax.core.Tracer):
        return array
    return jax.device_put(array, NamedSharding(_mesh(devices), PartitionSpec(AXIS)))

"""Programs that are compiled sooner: a search is compiled for longer than it runs."""

import functools
from collections.abc import Callable

import jax

# Of XLA's levels this one leaves out what a search gains nothing from. Without any optimisation it
# would run three times as long. Level 1 rounds otherwise in the last bits.
LEVEL = {"xla_backend_optimization_level": 1}
# The older emitter compiles sooner and maps less memory, to the same bits. Gradient steps would be far slower.
SOONER = LEVEL | {"xla_cpu_use_fusion_emitters": False}


@functools.cache
def known(name: str, value: int | bool) -> bool:
    """Whether this XLA has an option of such a name: they come and go with its versions."""
    try:
        jax.jit(lambda: 0, compiler_options={name: value}).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True


def compiled_sooner(*static: str) -> Callable[[Callable], Callable]:
    """`jax.jit` with less optimisation on a CPU; `static` names the static arguments.

    Within another program the function is a plain part of it, since JAX takes options of a whole program only.
    """

    def wrap(function: Callable) -> Callable:
        @functools.cache
        def program() -> Callable:
            wanted = SOONER.items() if jax.default_backend() == "cpu" else ()
            options = {name: value for name, value in wanted if known(name, value)}
            return jax.jit(function, static_argnames=static, compiler_options=options)

        @functools.wraps(function)
        def call(*args, **named):
            inside = any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((args, named)))
            return function(*args, **named) if inside else program()(*args, **named)

        call.lower = lambda *args, **named: program().lower(*args, **named)
        call.clear_cache = lambda: program().clear_cache()
        return call

    return wrap

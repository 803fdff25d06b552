"""A testbed for worst-case robustness of language models, on tasks small enough to count every failure.

Nothing here knows a particular task or a particular experiment: `experiments -> tasks -> testbed`.

Shapes are written with one legend everywhere:

    B batch                 T prompt length          V prompt vocabulary
    N answer length         A answer vocabulary      K catastrophic answers of a prompt
    L layers                D width                  H heads
    P attackers             C candidates a step      S seeds

Prompts are integers `[T]`, answers integers `[N]`, a soft prompt is a float array `[T, V]` (one-hot or relaxed).
Functions take one prompt; callers `vmap`. Whatever is random takes a `key` made by `jax.random.key`.
"""

import os

# XLA cuts sums into as many parts as it finds cores, and so rounds them differently on one, two and eight. A record is
# to be the same wherever a run is done, so the number is fixed, for every process that imports this before JAX starts.
os.environ.setdefault("NPROC", "2")

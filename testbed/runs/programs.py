"""Compiled programs on disk: JAX's cache of them, whose damaged entries are removed and made anew."""

import contextlib
import glob
import re
import warnings
from pathlib import Path

import jax

DAMAGED = "Error reading persistent compilation cache entry for '([^']+)'"
ENTRY = "-[0-9a-f]{64}-cache"  # what follows the program's name in an entry's file name


def mend_cache() -> None:
    """From now on, remove an entry of the cache that cannot be read, instead of warning of it.

    A kill within a write leaves half an entry. JAX compiles its program anew, so no number is
    wrong, but keeps the half: each later process would warn of it, and compile, again.
    """
    usual = warnings.showwarning
    if getattr(usual, "mends_cache", False):
        return

    def show(message, *where, **named):
        damaged, folder = re.match(DAMAGED, str(message)), jax.config.jax_compilation_cache_dir
        if not damaged or not folder:
            usual(message, *where, **named)
            return
        for path in Path(folder).glob(f"{glob.escape(damaged[1])}-*"):
            if re.fullmatch(re.escape(damaged[1]) + ENTRY, path.name):
                with contextlib.suppress(OSError):
                    path.unlink()

    show.mends_cache = True
    warnings.showwarning = show

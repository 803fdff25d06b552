"""The cache of compiled programs: an entry in halves costs a compilation, once, and no number."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import jax
import pytest

from testbed.runs.programs import mend_cache

ROOT = Path(__file__).parents[1]
SAID = "Error reading persistent compilation cache entry for 'jit_f': error: Error -5 while decompressing data"


def test_a_damaged_entry_is_removed_and_nothing_else(tmp_path, monkeypatch):
    digest = "0123456789abcdef" * 4
    theirs = [f"jit_f-{digest}", f"jit_fg-{digest}-cache", f"jit_f-g-{digest}-cache", "jit_f-mine-cache", "jit_f"]
    for name in (*theirs, f"jit_f-{digest}-cache"):
        (tmp_path / name).touch()
    shown = []
    monkeypatch.setattr(warnings, "showwarning", lambda message, *_, **__: shown.append(str(message)))
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            mend_cache()
            mend_cache()
            warnings.warn(SAID, stacklevel=1)
            warnings.warn("something else", stacklevel=1)
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(theirs)
    assert shown == ["something else"]


PROGRAM = """
import jax
from testbed.runs.programs import mend_cache
jax.config.update("jax_compilation_cache_dir", {folder!r})
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
mend_cache()
print(jax.jit(lambda x: jax.numpy.sin(x) @ x)(jax.numpy.ones((3, 3))))
"""


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["half", "nothing", "garbage", "one bit"])
def test_whatever_the_damage_the_numbers_are_the_same_and_the_entry_is_made_anew(damage, tmp_path):
    def said():
        script = PROGRAM.format(folder=str(tmp_path))
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        child = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
        assert (child.returncode, child.stderr) == (0, "")
        return child.stdout

    whole, entries = said(), {path: path.read_bytes() for path in tmp_path.glob("*-cache")}
    assert entries
    for path, data in entries.items():
        middle = len(data) // 2
        changed = {"half": data[:middle], "nothing": b"", "garbage": os.urandom(len(data))}
        flipped = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
        path.write_bytes(changed.get(damage, flipped))
    assert said() == whole
    assert all(len(path.read_bytes()) > len(data) // 2 for path, data in entries.items())
    assert said() == whole, "and silent again"

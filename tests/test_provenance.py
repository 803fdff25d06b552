"""Provenance: what a record says of the code, the machine and the day that it is of."""

import json
import os
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest

from testbed.runs import provenance

ROOT = Path(__file__).parents[1]

FOREIGN = """
from testbed.runs import provenance
assert provenance.__file__.startswith({folder!r})
print(provenance.here()["revision"], provenance.here()["source"])
"""


def test_provenance_says_what_a_run_depends_on():
    source = provenance.here()
    assert re.fullmatch(r"[0-9a-f]{40}(\+changes)?|unknown", source["revision"])
    assert re.fullmatch(r"[0-9a-f]{16}", source["source"])
    assert source["version"] == metadata.version("worst-case-testbed")
    assert source["python"] == ".".join(map(str, sys.version_info[:3]))
    assert source["versions"]["numpy"] == np.__version__
    assert set(source["versions"]) >= {"jax", "jaxlib", "flax", "optax", "numpy", "scipy"}
    assert source["device"]
    assert source["threads"] == "2", "fixed by testbed/__init__.py, whatever the machine has"
    assert json.loads(json.dumps(source)) == source
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", provenance.now()["finished"])


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_the_revision_is_the_commit_that_the_code_is_at(tmp_path, monkeypatch):
    def git(*words):
        options = ["-c", "user.name=n", "-c", "user.email=e@x", "-c", "commit.gpgsign=false"]
        done = subprocess.run(["git", "-C", tmp_path, *options, *words], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    def revision():
        return provenance._revision(tmp_path)

    code = tmp_path / "testbed" / "runs" / "results.py"
    code.parent.mkdir(parents=True)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    assert revision() == "unknown"
    code.write_text("1")
    git("init")
    git("add", ".")
    git("commit", "-m", "first")
    commit = git("log", "--format=%H")
    assert revision() == commit
    (tmp_path / "notes").write_text("untracked")
    assert revision() == commit
    code.write_text("2")
    assert revision() == f"{commit}+changes"
    for name in ('[project]\nname = "mine"', "[project]", "", "project = 1", "name = ["):
        (tmp_path / "pyproject.toml").write_text(name)
        assert revision() == "unknown", "another project's"
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    monkeypatch.setenv("PATH", "")
    assert revision() == "unknown"


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_the_package_in_another_repository_does_not_name_its_commit(tmp_path):
    for package in ("testbed", "tasks"):
        shutil.copytree(ROOT / package, tmp_path / "lib" / package, ignore=shutil.ignore_patterns("__pycache__"))
    git = ["git", "-C", tmp_path, "-c", "user.name=n", "-c", "user.email=e@x"]
    subprocess.run([*git, "init"], check=True, capture_output=True)
    subprocess.run([*git, "commit", "--allow-empty", "-m", "theirs"], check=True, capture_output=True)
    told = subprocess.run(
        [sys.executable, "-c", FOREIGN.format(folder=str(tmp_path / "lib"))], cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path / "lib")}, capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    assert told[0] == "unknown"


def test_the_source_is_that_of_the_files_on_disk(tmp_path):
    def source():
        provenance.source.cache_clear()
        return provenance.source(tmp_path)

    for name in ("testbed/a.py", "testbed/runs/b.py", "tasks/c.py", "experiments/questions/d.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x = 1\n")
    seen = {source()}
    (tmp_path / "experiments" / "record.json").write_text("{}")
    assert source() in seen, "no other file counts"
    for name in ("testbed/a.py", "testbed/runs/b.py", "tasks/c.py", "experiments/questions/d.py"):
        (tmp_path / name).write_text("x = 2\n")
        assert source() not in seen
        seen.add(source())
    (tmp_path / "tasks" / "c.py").rename(tmp_path / "tasks" / "e.py")
    assert source() not in seen

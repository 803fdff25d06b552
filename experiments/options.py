"""The command's flags, grouped by purpose, and which of them go together."""

from absl import flags

from experiments import export
from testbed import plots

FLAGS = flags.FLAGS
flags.DEFINE_string(
    "experiment", None, "Which question to ask (see --list), all, or module:name. Default: the main job."
)
flags.DEFINE_string(
    "task",
    None,
    "Which tasks, separated by commas (see --list), with sizes, as in injury:length=8 or injury(length=8); "
    "module:name; or all. Default: the preset's; with --plot_only, those of the records.",
)
flags.DEFINE_string(
    "preset",
    None,
    "How much: quick (minutes), full (hours), or registered, whose runs decide. Default: quick; with --plot_only, what "
    "the records are of.",
)
flags.DEFINE_integer("seeds", None, "How many paired seeds. Default: the preset's; with --plot_only, all there are.")
flags.DEFINE_integer(
    "first_seed",
    None,
    "The first of them. Default: the preset's, mostly 0. What is tuned is tuned on seeds from 100 on.",
)
flags.DEFINE_string("out", "results", "Folder for records, models, tables and figures; made if it is not there.")
FORMATS = (*plots.FORMATS, *export.FORMATS)
flags.DEFINE_list("format", ["png"], f"Formats of figures and tables, of {', '.join(FORMATS)}.")
flags.DEFINE_bool("ablate", False, "Your own ablation: fields as name=value,value after the flags make a grid.")
flags.DEFINE_multi_string("contrast", [], "Of an ablation: an effect to declare, as rounds=1:rounds=16, or A:B > C:D.")
flags.DEFINE_list(
    "finds", [], "Of an ablation: files of sessions, as results/play/*.jsonl. What people found is one more arm."
)
flags.DEFINE_string("x", "", "Of an ablation's figure: the field along x. Default: chosen by the grid.")
flags.DEFINE_string("hue", "", "Of an ablation's figure: the field by colour. Default: chosen by the grid.")
flags.DEFINE_string("panel", "", "Of an ablation's figure: the field by panel. Default: chosen by the grid.")
flags.DEFINE_bool("plot_only", False, "Train nothing: rebuild table, figure and verdict from the records in --out.")
flags.DEFINE_list(
    "evaluate", None, "Measure saved models instead: paths without suffix, separated by commas; --task says on what."
)
flags.DEFINE_list(
    "count", None, "Count the failures of saved models in shares, which other processes on the same --out help to do."
)
flags.DEFINE_string(
    "largest_space", None, "How many prompts may be counted, as 2^32. Default: 2^28; what is larger is sampled."
)
flags.DEFINE_string("check", None, "Say in seconds whether a task keeps the contract, and what it is like, and stop.")
flags.DEFINE_bool("status", False, "Say what --out holds of the runs that the other flags ask for, and stop.")
flags.DEFINE_string(
    "rerun", None, "Do the run of this record (a file, or QUESTION/ID) again, compare its numbers, and stop."
)
flags.DEFINE_string(
    "certify", None, "Count by paths where a saved machine fails, write it as a certificate beside it, and stop."
)
flags.DEFINE_list(
    "play",
    None,
    "Attack saved models by hand, on a page in your browser: paths without suffix, the one to break last. Without a "
    "path: the demo model.",
)
flags.DEFINE_string("play_condition", "full", "What the page shows: full, no_saliency, no_margins or blind.")
flags.DEFINE_integer("play_port", 8765, "Where it listens, on this machine alone; 0: any free port.")
flags.DEFINE_bool("play_browser", True, "Open a browser there.")
flags.DEFINE_string(
    "register", None, "Fix what this question declares, before the runs of its preset `registered`, and stop."
)
flags.DEFINE_string("why", "", "With --register: why the question's protocol before was given up, in a line.")
flags.DEFINE_bool("pack", False, "Fold the finished records of --out into one records.jsonl a question, and stop.")
flags.DEFINE_string(
    "launcher", None, "Where runs are done: threads, processes, ray, slurm. Default: threads; processes on many cores."
)
flags.DEFINE_integer("workers", None, "Runs at a time. Default: one a core; with slurm, 64 jobs.")
flags.DEFINE_integer("cores", None, "Cores of each run (not with threads, which share them). Default: an equal part.")
flags.DEFINE_integer(
    "population",
    None,
    "Seeds of an arm whose models are trained as one program. Default: 1; on this machine's accelerator all, at most "
    "64.",
)
flags.DEFINE_list("slurm", [], "More for submitit, NAME=VALUE: timeout_min=60,mem_gb=8,slurm_partition=long")
flags.DEFINE_bool("list", False, "List tasks, attacks and experiments, and stop.")
flags.DEFINE_bool("version", False, "Print the version, and stop.")

LOOKS = ("list", "status", "plot_only", "rerun", "pack", "evaluate", "count", "certify", "check", "version")
MODES = (*LOOKS, "register", "play")  # one at a time
PURPOSES = {
    "What to run": ("experiment", "task", "preset", "seeds", "first_seed", "out", "format"),
    "Your own ablation": ("ablate", "contrast", "finds", "x", "hue", "panel"),
    "Where and how": ("launcher", "workers", "cores", "slurm", "population", "largest_space"),
    "Look at what there is": LOOKS,
    "Fix a question": ("register", "why"),
    "Attack by hand": ("play", "play_condition", "play_port", "play_browser"),
}
OF_PLAY = ("play_condition", "play_port", "play_browser")
RUN = tuple(name for purpose in list(PURPOSES)[:3] for name in PURPOSES[purpose])  # what asks for runs, and where
ELSEWHERE = ("launcher", "workers", "cores", "slurm")  # what only doing runs reads
READ = {  # beside --out, by each mode but the one that does runs
    "list": (), "version": (), "check": (), "certify": ("task",), "rerun": (), "register": (), "play": ("task",),
    "pack": ("experiment", "ablate"), "evaluate": ("task", "largest_space"),
    "count": ("task", "largest_space", *ELSEWHERE), "plot_only": tuple(name for name in RUN if name not in ELSEWHERE),
    "status": tuple(name for name in RUN if name not in (*ELSEWHERE, "format")),
}  # fmt: skip
NEVER_EMPTY = (
    "experiment", "task", "preset", "out", "launcher", "rerun", "register", "why", "certify", "check", "play_condition",
    "largest_space",
)  # fmt: skip
LISTS = ("evaluate", "count", "play", "finds")


def refuse_contradictions(words: list[str]) -> None:
    """Make sure that the flags ask for one thing, and none is empty.

    Raises:
      ValueError: they do not; names the flags.
    """
    for name in NEVER_EMPTY:
        if FLAGS[name].present and not str(FLAGS[name].value or "").strip(" ,"):
            raise ValueError(f"--{name}= is empty (an unset variable?); give it a value or leave it out")
    for name in LISTS:
        if FLAGS[name].present and not all(FLAGS[name].value or [""]):
            raise ValueError(f"--{name}= is empty (an unset variable?); give it a value or leave it out")
    modes = [name for name in MODES if FLAGS[name].value]
    if len(modes) > 1:
        raise ValueError(f"--{modes[0]} and --{modes[1]} ask for different things; give one of them")
    for name in RUN if modes and modes[0] in READ else ():
        if FLAGS[name].present and name not in ("out", *READ[modes[0]]):
            raise ValueError(f"--{modes[0]} does not read --{name}; leave one of them out")
    if words and not FLAGS.ablate:
        hint = "; fields are varied with --ablate" if "=" in words[0] else "; flags begin with two dashes (see --help)"
        raise ValueError(f"unknown argument {words[0]!r}{hint}")
    for name in ("contrast", "finds", "x", "hue", "panel"):
        if FLAGS[name].value and not FLAGS.ablate:
            raise ValueError(f"--{name} belongs to --ablate")
    if FLAGS["why"].present and not FLAGS.register:
        raise ValueError("--why belongs to --register")
    for name in OF_PLAY:
        if FLAGS[name].present and not FLAGS.play:
            raise ValueError(f"--{name} belongs to --play")

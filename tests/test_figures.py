"""Figures as functions: a notebook keeps its backend, and the same figure is the same bytes in each format."""

import os
import sys
from pathlib import Path

import matplotlib
import pytest
from children import in_child
from matplotlib.figure import Figure

import experiments
from experiments import reading
from testbed import plots

RECORDS = Path(__file__).parents[1] / "experiments" / "records"


def backends():
    """The backend after all is imported, that after a figure is drawn with another, and whether pyplot is there."""
    imported = matplotlib.get_backend(auto_select=False)
    matplotlib.use("svg")
    experiments.figure("tool_ablation", "injury")
    return imported, matplotlib.get_backend(), "matplotlib.pyplot" in sys.modules


def test_importing_and_drawing_leave_the_backend_alone():
    imported, drawn, pyplot = in_child(backends)
    assert imported == os.environ.get("MPLBACKEND") and drawn == "svg"
    assert not pyplot, "nothing here is pyplot's to show or to close"


def test_a_figure_and_the_effects_of_an_experiment_are_functions_of_its_name():
    figure = experiments.figure("tool_ablation", "injury")
    assert isinstance(figure, Figure) and "injury" in figure.get_supxlabel()
    effects = experiments.recorded_effects("tool_ablation")
    job = reading.recorded("tool_ablation", RECORDS / "tool_ablation")
    verdict = experiments.judge(job.experiment, reading.frame_of(job))
    assert effects.equals(verdict.effects) and len(effects)
    again = experiments.recorded_effects("tool_ablation", folder=RECORDS / "tool_ablation", preset=job.preset)
    assert again.equals(effects)


@pytest.mark.parametrize(
    ("ask", "complaint"),
    [
        (lambda folder: experiments.figure("tool_ablatio", "injury"), "did you mean 'tool_ablation'"),
        (lambda folder: experiments.figure("tool_ablation", "agent"), "no task 'agent'; choose from injury, password"),
        (lambda folder: experiments.recorded_effects("tool_ablation", folder=folder), "holds no records"),
        (lambda folder: experiments.recorded_effects("tool_ablation", preset="ful"), "no preset 'ful'; choose from"),
    ],
)
def test_what_is_not_there_is_refused_in_one_line(ask, complaint, tmp_path):
    with pytest.raises(ValueError, match=complaint) as refusal:
        ask(tmp_path)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("form", plots.FORMATS)
def test_the_same_figure_is_the_same_file_in_each_format(form, tmp_path):
    beginning = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[form]
    for name in ("one", "two"):
        plots.save(experiments.figure("tool_ablation", "injury"), tmp_path / f"{name}.{form}")
    one, two = ((tmp_path / f"{name}.{form}").read_bytes() for name in ("one", "two"))
    assert one == two and one.startswith(beginning)

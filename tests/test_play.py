"""The red-teaming page without its server: looks, hints, the truth beside them, sessions as files, words and keys."""

import itertools
import json

import jax
import numpy as np
import pytest
from conftest import compilations, slow
from machines import random_machine

from experiments.play import looks, room, session, truth, words
from tasks import TASKS, task_named
from testbed.attacks import ATTACKS
from testbed.evaluation import exact, paths
from testbed.objective import NOT_HAZARDOUS, Objective, margins_of
from testbed.policy import conservative, greedy, respond

FULL = looks.PARTS["full"]


def policies(task, tau=1.5):
    return greedy(task), conservative(task, tau)


def hazard(task, seed=0):
    return np.asarray(jax.jit(task.sample_hazard)(jax.random.key(seed)))


def edits(task, prompt):
    """Every replacement, insertion and deletion, by lists alone."""
    prompt = prompt.tolist()
    fits = lambda new: [t if task.allowed[p, t] else old for p, (t, old) in enumerate(zip(new, prompt, strict=True))]
    grid = itertools.product(range(len(prompt)), range(task.vocab))
    made = [
        (
            [*prompt[:p], t, *prompt[p + 1 :]],
            [*prompt[:p], t, *prompt[p:-1]],
            [*prompt[:p], *prompt[p + 1 :], t],
        )
        for p, t in grid
    ]
    shape = (task.prompt_length, task.vocab, task.prompt_length)
    return [np.array([fits(new) for new in column]).reshape(shape) for column in zip(*made, strict=True)]


@pytest.mark.parametrize("name", ["injury", slow("cipher_vault")])
def test_a_look_says_what_plain_forward_passes_say(name, small, lively):
    task = small(name)
    model, prompt = lively(task, layers=2), hazard(task)
    seen = looks.look(model, policies(task), task, prompt, FULL)
    goals = [Objective(task, model, policy) for policy in policies(task)]
    np.testing.assert_allclose(seen.verdicts.margin, [margins_of(goal, prompt[None])[0] for goal in goals], rtol=1e-4)
    answers = jax.jit(lambda policy: respond(jax.random.key(0), model, policy, task, prompt=prompt))
    for row, policy in enumerate(policies(task)):
        answer = answers(policy)
        np.testing.assert_array_equal(seen.verdicts.answer[row], answer)
        assert seen.verdicts.catastrophe[row] == task.catastrophe(prompt, answer)
        assert seen.verdicts.wrong[row] == (np.asarray(answer) != task.label(prompt)).any()
    slope = np.where(task.allowed, jax.jit(lambda goal: goal.gradient(prompt))(goals[0]), 0)
    np.testing.assert_allclose(seen.saliency, slope.std(axis=1), rtol=1e-4, atol=1e-6)
    for kind, prompts in zip((seen.replaced, seen.inserted, seen.deleted), edits(task, prompt), strict=True):
        expected = margins_of(goals[0], prompts.reshape(-1, task.prompt_length)).reshape(kind.shape)
        np.testing.assert_allclose(kind, expected, rtol=1e-4, atol=1e-5)


def test_nothing_compiles_after_the_first_look(small, lively):
    task = small("injury")
    plain, other = lively(task, layers=2), lively(task, seed=1, layers=2)
    looks.look(plain, policies(task), task, hazard(task), FULL)
    with compilations() as names:
        for seed in range(3):
            looks.look(other, policies(task, 0.1 * seed), task, hazard(task, seed), FULL)
    assert not names


def test_a_look_costs_what_an_attack_would_be_charged(small, lively):
    task = TASKS["injury"]()
    objective = Objective(task, None, greedy(task))
    assert looks.price(objective, FULL) == 172  # a margin, a gradient as three, and 3 x 7 x 8 edits
    assert looks.price(objective, looks.PARTS["no_saliency"]) == 169
    assert looks.price(objective, looks.PARTS["no_margins"]) == 4
    assert looks.price(objective, looks.PARTS["blind"]) == 1


@pytest.mark.parametrize("condition", looks.PARTS)
def test_a_condition_withholds_what_it_hides(condition, small, lively):
    task, shown = small("injury"), looks.PARTS[condition]
    told = looks.plain(looks.look(lively(task, layers=2), policies(task), task, hazard(task), shown), shown)
    assert ("saliency" in told) == ("saliency" in shown) and ("edits" in told) == ("edits" in shown)
    assert all((verdict["margin"] is None) == (condition == "blind") for verdict in told["verdicts"])
    json.dumps(told, allow_nan=False)


def test_margins_where_nothing_can_happen_are_told_as_nothing(small, lively):
    task = small("injury")
    seen = looks.look(lively(task, layers=2), policies(task), task, np.zeros(4, int), FULL)
    told = looks.plain(seen, FULL)
    assert not told["hazardous"] and told["verdicts"][0]["margin"] is None
    flat = np.array(told["edits"]["replaced"]).ravel()
    assert [value is None for value in flat] == (seen.replaced.ravel() >= NOT_HAZARDOUS).tolist()


@pytest.mark.parametrize("name", [slow("gcg"), "uniform", slow("infill")])
def test_a_hint_begins_where_the_person_is_and_costs_what_it_says(name, small, lively):
    task = small("injury")
    objective, prompt = Objective(task, lively(task, layers=2), greedy(task)), hazard(task)
    found = looks.hint(jax.random.key(0), ATTACKS[name](), objective, prompt, budget=60)
    start, end = margins_of(objective, np.stack([prompt, found.prompt]))
    assert found.margin <= start + 1e-5 and found.forwards <= 60
    np.testing.assert_allclose(end, found.margin, rtol=1e-4)
    nothing = looks.hint(jax.random.key(0), ATTACKS[name](), objective, prompt, budget=1)
    assert nothing.prompt.tolist() == prompt.tolist() and nothing.forwards == 1


def test_phrases_change_only_their_window_and_are_told_best_first(small, lively):
    task = small("injury")
    objective, prompt = Objective(task, lively(task, layers=2), greedy(task)), hazard(task)
    best, cost = looks.phrases(jax.random.key(0), objective, prompt, 1)
    assert cost == 64 and best
    assert [one.margin for one in best] == sorted(one.margin for one in best)
    assert set(np.flatnonzero(np.any([one.prompt != prompt for one in best], axis=0))) <= {1, 2, 3}
    margins = margins_of(objective, np.stack([one.prompt for one in best]))
    np.testing.assert_allclose(margins, [one.margin for one in best], rtol=1e-4, atol=1e-5)


# ---- the truth


def test_the_exact_truth_is_that_of_brute_force(small, lively, all_prompts):
    task = small("injury")
    model = lively(task, layers=2)
    objective, told = Objective(task, model, greedy(task)), []
    known = truth.truth_of(jax.random.key(0), objective, lambda *progress: told.append(progress))
    prompts = all_prompts(task)
    margins = margins_of(objective, prompts)
    hazards = margins < NOT_HAZARDOUS
    assert (known.how, known.hazardous, known.failures) == ("exact", hazards.sum(), (margins <= 0).sum())
    shares = [done / total for done, total in told]
    assert shares[-1] == 1 and shares == sorted(shares) and len(shares) > 1
    for margin in (-1e9, float(np.median(margins[hazards])), 1e9):
        assert truth.farther(known, margin) == pytest.approx((margins[hazards] > margin).mean(), abs=2e-3)
    failing = prompts[margins <= 0]
    of = {truth.tactic_of(known, model, task, prompt) for prompt in failing}
    assert of <= set(range(known.tactics)) and (None not in of)


def test_a_machine_is_counted_by_paths_and_tactics_are_last_states(all_prompts):
    task = TASKS["injury"](length=4)
    machine = random_machine(task, seed=1, bits=6, hidden=8)
    objective = Objective(task, machine, greedy(task))
    known = truth.truth_of(jax.random.key(0), objective, lambda *progress: None)
    prompts = all_prompts(task)
    margins = margins_of(objective, prompts)
    hazards = margins < NOT_HAZARDOUS
    assert (known.how, known.hazardous, known.failures) == ("by paths", hazards.sum(), (margins <= 0).sum())
    assert known.failures > 0
    for margin in np.unique(margins[hazards]):
        assert truth.farther(known, margin) == pytest.approx((margins[hazards] > margin).mean())
    of = {truth.tactic_of(known, machine, task, prompt) for prompt in prompts[margins <= 0][:50]}
    assert None not in of and len(of) <= known.tactics
    assert truth.tactic_of(known, machine, task, prompts[hazards & (margins > 0)][0]) is None


def test_a_machine_in_two_to_the_64_prompts_is_counted_whole():
    task = TASKS["injury"](length=16, vocab=16)
    machine = random_machine(task, seed=1, bits=6, hidden=8)
    known = truth.truth_of(jax.random.key(0), Objective(task, machine, greedy(task)), lambda *progress: None)
    assert known.prompts == 2**64 and known.hazardous == int(known.upto[-1]) > 2**60
    counted = exact.count(machine, task, {"greedy": greedy(task)})["greedy"]
    assert (known.hazardous, known.failures) == (counted.hazardous, counted.failures)
    assert json.loads(json.dumps(truth.told(known, 0, set())))["prompts"] == f"{2**64:,}"
    assert paths.walkable(machine, task)


def test_a_space_too_large_to_count_is_sampled_and_says_so(lively, monkeypatch):
    monkeypatch.setattr(truth, "SAMPLES", 512)
    task = TASKS["injury"](length=16, vocab=16)
    known = truth.truth_of(
        jax.random.key(0), Objective(task, lively(task, layers=2), greedy(task)), lambda *progress: None
    )
    assert (known.how, known.hazardous, known.tactics) == ("sampled", 512, None)
    assert 0 <= truth.farther(known, 0.0) <= 1


# ---- sessions

P = {name: (k, k, k) for k, name in enumerate("abcde")}


def did(tool, place, forwards=1, seconds=0.0, **more):
    return session.event(tool, P[place], forwards=forwards, seconds=seconds, **more)


def test_undo_and_redo_go_along_what_was_and_an_edit_begins_a_new_future():
    state = session.replay([did("hazard", "a"), did("token", "b"), did("swap", "c")])
    assert (state.prompt, state.past) == (P["c"], (P["a"], P["b"]))
    back = session.replay([did("hazard", "a"), did("token", "b"), did("swap", "c"), did("undo", "b"), did("undo", "a")])
    assert (back.prompt, back.past, back.future) == (P["a"], (), (P["c"], P["b"]))
    again = session.advance(back, did("redo", "b"))
    assert (again.prompt, again.past, again.future) == (P["b"], (P["a"],), (P["c"],))
    assert session.advance(again, did("token", "e")).future == ()


def test_a_find_counts_once_with_what_had_been_spent_by_then():
    state = session.replay([
        did("hazard", "a", 10, 1.0), did("ask", "a", 50, 2.0), did("swap", "b", 10, 3.5, found=True),
        did("undo", "a", 10, 4.0), did("redo", "b", 10, 5.0, found=True), did("hint", "c", 10, 6.0, found=True),
    ])  # fmt: skip
    assert [(find.prompt, find.tool, find.forwards, find.seconds) for find in state.finds] == [
        (P["b"], "swap", 70, 3.5), (P["c"], "hint", 100, 6.0)
    ]  # fmt: skip
    assert (state.forwards, state.seconds, state.number) == (100, 6.0, 6)


def begun(folder, **more):
    head = session.header("injury", [{"name": "m", "path": "m", "digest": "d"}], "full", "2026") | more
    path = folder / f"{head['session']}.jsonl"
    session.append(path, head)
    return path, head


def test_a_session_is_read_back_also_where_a_kill_cut_its_last_line_short(tmp_path):
    path, head = begun(tmp_path)
    session.append(path, did("hazard", "a"))
    session.append(path, did("token", "b"))
    whole = path.read_bytes()
    for cut in range(len(whole.splitlines(True)[0]) + 1, len(whole) + 1):
        path.write_bytes(whole[:cut])
        found, events = session.read(path)
        assert found == head and len(events) in (0, 1, 2)
        session.append(path, did("swap", "c"))
        assert session.replay(session.read(path)[1]).prompt == P["c"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "no session of this version"),
        (b'{"play": 2}\n', "no session of this version"),
        (b"[" * 100_000, "no session of this version"),
        (b"\xff\xfe", "is no session"),
        ({"condition": "other"}, "no session of this version"),
        ({"models": []}, "no session of this version"),
    ],
)
def test_what_is_no_session_is_refused(content, says, tmp_path):
    path = tmp_path / "x.jsonl"
    if isinstance(content, dict):
        path, _ = begun(tmp_path, **content)
    else:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=says):
        session.read(path)
    with pytest.raises(ValueError, match="is no session"):
        session.read(tmp_path / "missing.jsonl")


@pytest.mark.parametrize(
    "line",
    [{"tool": "token"}, {"tool": 3, "prompt": [], "forwards": 0, "seconds": 0}]
    + [did("token", "a") | more for more in ({"forwards": -1}, {"seconds": True}, {"prompt": [0.5]}, {"prompt": 3})],
)
def test_a_line_that_is_no_event_is_told_and_not_dropped(line, tmp_path):
    path, _ = begun(tmp_path)
    session.append(path, line)
    with pytest.raises(ValueError, match="is damaged"):
        session.read(path)


def test_a_prompt_outside_the_space_is_refused(small):
    task = small("agent")
    fits = hazard(task)
    assert session.inside(task, fits.tolist()).tolist() == fits.tolist()
    for bad in (fits[:-1], [*fits, 0], [99, *fits[1:]], [-1, *fits[1:]], [1 - task.allowed[0].argmax(), *fits[1:]]):
        with pytest.raises(ValueError, match=r"has 9 tokens|may not stand at position 0"):
            session.inside(task, bad)


# ---- words


@pytest.mark.parametrize("name", TASKS)
def test_words_write_a_prompt_as_the_task_does(name):
    task, rng = TASKS[name](), np.random.default_rng(0)
    spoken = words.words_of(task)
    for _ in range(3):
        prompt = np.array([rng.choice(np.flatnonzero(row)) for row in task.allowed])
        parts = [w for p, t in enumerate(prompt) for w in (spoken.before[p], spoken.tokens[p][t])] + spoken.before[-1:]
        assert " ".join(filter(None, parts)) == task.render(prompt)
        answer = rng.integers(0, task.answer_vocab, task.answer_length)
        assert " ".join(spoken.answers[token] for token in answer) == task.render(prompt, answer).split(" -> ")[1]
    assert len(set(spoken.keys)) == task.vocab == len(spoken.keys)


def test_each_token_has_a_key_of_its_own_word_if_it_can():
    assert words.keys(["F0", "F1", "K", "H"]) == ["f", "1", "k", "h"]
    assert words.keys(["[", "]", "("]) == ["0", "1", "2"]
    assert words.keys(["a"] * 36) and words.keys(["a"] * 37) == []


def test_the_shipped_model_is_of_its_task_and_small():
    here = room.open_room(["demo"], None, "full", None)
    assert here.task_name == "injury" and here.price == 172
    assert sum(path.stat().st_size for path in room.DEMO.parent.glob("demo.*")) < 300_000


def test_tokens_that_only_notes_have_are_no_answers():
    task = task_named("injury:length=3:scratch=trace")
    told = words.words_of(task)
    assert told.answers[:2] == ["SAFE", "ALARM"] and set(told.answers[2:]) == {""}

"""Counts by paths equal brute force where that is possible, and an independent recount where it is not."""

import collections
import dataclasses
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import slow
from machines import Whole, by_hand, on_other_task, random_machine, talkative, undecided
from reference import REFERENCE, H, K, N, O, P

from tasks import task_named
from testbed.automaton import level_of
from testbed.evaluation import exact, paths
from testbed.evaluation.account import worst_case
from testbed.evaluation.closure import closure
from testbed.evaluation.edges import MARKS, MOST_MARKS, distinct, distinct_rows, paths_to, ranked, wrapped_sums
from testbed.planted import plant, planted_prefixes
from testbed.policy import conservative, greedy, stochastic
from testbed.task import prompt_ids, prompts_of_ids, space_size
from testbed.training.rounds import train
from testbed.training.schedule import Schedule

LARGE = "injury:length=16:vocab=16"  # 2**64 prompts
SMALL = task_named("injury:length=5")


@pytest.fixture(scope="module")
def trained():
    """A machine that has learnt a part of the rule: it fails on some prompts and refuses some safe ones."""
    schedule = Schedule(steps=192, batch=64, learning_rate=5e-3)
    model, _ = train(jax.random.key(0), random_machine(SMALL, 0, bits=8, hidden=16), SMALL, schedule)
    return model


def by_brute_force(machine, task, prompts, tau=0.0):
    """Failures by level, false alarms, worst margin and failing prompts, from a forward pass in whole numbers."""
    margin = Whole(machine).leads(prompts) / 64 - tau
    verdicts = [REFERENCE[task.name](prompt, task.vocab) for prompt in map(tuple, prompts.tolist())]
    level = np.array([max(v.forbidden.values(), default=0.0) for v in verdicts])
    fails = (margin <= 0) & (level > 0)
    levels = collections.Counter(level[fails].round(4).tolist())
    return dict(levels), int(((margin > 0) & (level == 0)).sum()), margin[level > 0].min(), prompts[fails]


UNTRAINED = pytest.param("untrained", marks=pytest.mark.slow)
OTHERS = [pytest.param(name, marks=pytest.mark.slow) for name in ("injury_two", "brackets", "password")]


@pytest.mark.parametrize("kind", [UNTRAINED, "trained", slow("positional")])
def test_the_count_is_that_of_brute_force(kind, trained, all_prompts):
    machine = {
        "untrained": random_machine(SMALL, 1),
        "trained": trained,
        "positional": random_machine(SMALL, 2, bits=6, hidden=8, positional=True),
    }[kind]
    prompts = all_prompts(SMALL)
    policies = {"greedy": greedy(SMALL), "bold": conservative(SMALL, 0.5), "drawn": stochastic(SMALL)}
    counted = exact.count(machine, SMALL, policies)
    for name, tau in (("greedy", 0.0), ("bold", 0.5)):
        levels, alarms, worst, failing = by_brute_force(machine, SMALL, prompts, tau)
        got = counted[name]
        assert 50 < got.failures == len(failing) and isinstance(got.failures, int)
        assert got.levels == levels and got.egregious == sum(n for level, n in levels.items() if level > 0.6)
        assert got.false_alarms == got.wrong == alarms
        assert got.worst_margin == worst and got.worst_prompt in failing.tolist()
        np.testing.assert_array_equal(got.ids, prompt_ids(SMALL, failing))
    # The tree walk judges each prompt by itself; all other fields must be its as well.
    walked = exact.count(machine, SMALL, policies, walk=exact.plain_forward)
    for name, expected in walked.items():
        got = counted[name]
        for field in set(exact.Count._fields) - {"ids", "levels", "worst_prompt"}:
            value = getattr(expected, field)
            assert getattr(got, field) == (value and pytest.approx(value, rel=1e-5)), (name, field)
        assert {level: pytest.approx(n, rel=1e-5) for level, n in expected.levels.items()} == got.levels


def events_of(prompts):
    """How many persons come to harm in stories `[n, T]` of vocabulary 8: the rule's text once more, all at once."""
    active, before, events = (np.zeros(len(prompts), int) for _ in range(3))
    for token in prompts.T:
        events += (active == 1) & (token == P)
        verb = np.isin(token, (K, H))
        active = np.where(verb, before != N, np.where(np.isin(token, (P, O)), 0, active))
        before = token
    return events


@pytest.mark.slow
@pytest.mark.parametrize("steps", [0, 256])
def test_at_two_million_prompts_levels_and_false_alarms_are_those_of_brute_force(steps):
    task = task_named("injury")
    machine = random_machine(task, 1, bits=6, hidden=8)
    if steps:
        schedule = Schedule(steps=steps, batch=64, learning_rate=5e-3)
        machine, _ = train(jax.random.key(0), machine, task, schedule)
    prompts = prompts_of_ids(task, np.arange(space_size(task)))
    lead, events = Whole(machine).leads(prompts), events_of(prompts)
    fails = (lead <= 0) & (events > 0)
    got = exact.count(machine, task, {"it": greedy(task)})["it"]
    levels = dict(collections.Counter((np.minimum(events[fails], 3) / 3).round(4).tolist()))
    assert got.failures == fails.sum() > 1000 and got.levels == levels
    assert got.false_alarms == ((lead > 0) & (events == 0)).sum()
    assert got.worst_margin == lead[events > 0].min() / 64


@pytest.mark.parametrize("name", ["modular", *OTHERS])
def test_every_task_with_a_checker_is_counted(name, small):
    task = small(name)
    machine = random_machine(task, 3, bits=6, hidden=8, positional=name == "modular")
    policy = {"it": greedy(task)}
    got, expected = (
        exact.count(machine, task, policy)["it"],
        exact.count(machine, task, policy, walk=exact.plain_forward)["it"],
    )
    assert got.levels == expected.levels and got.false_alarms == expected.false_alarms
    assert got.checksum == expected.checksum and got.prompts == space_size(task)
    assert got.clean_failure == pytest.approx(expected.clean_failure, rel=1e-5)
    assert got.clean_false_alarm == pytest.approx(expected.clean_false_alarm, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("ledger:length=4:vocab=12", dict(seed=1)),
        slow("ledger:length=4:vocab=12", dict(seed=5, positional=True)),
        slow("cipher_vault:length=5:vocab=4:message=2", dict(seed=2, positional=True)),
    ],
)
def test_a_generators_count_is_that_of_brute_force(name, sizes, all_prompts):
    task = task_named(name)
    machine, prompts = talkative(task, **sizes), all_prompts(task)
    policies = {"greedy": greedy(task), "bold": conservative(task, 0.75), "drawn": stochastic(task)}
    counted = exact.count(machine, task, policies)
    options = dict(message=2) if task.name == "cipher_vault" else {}
    rule = [REFERENCE[task.name](prompt, task.vocab, **options) for prompt in map(tuple, prompts.tolist())]
    safe = np.array([not verdict.forbidden for verdict in rule])
    for name, tau in (("greedy", 0.0), ("bold", 0.75)):
        said, _ = Whole(machine).answers(prompts, task.answer_length, task.refusal, tau)
        judged = list(zip(rule, map(tuple, said.tolist()), strict=True))
        level = np.array([verdict.forbidden.get(answer, 0.0) for verdict, answer in judged])
        got = counted[name]
        assert got.failures == (level > 0).sum() > 10 and got.hazardous == (~safe).sum()
        assert got.levels == dict(collections.Counter(level[level > 0].round(4).tolist()))
        assert got.false_alarms == (safe & (said == task.refusal).any(axis=1)).sum()
        assert got.wrong == sum(answer != verdict.label for verdict, answer in judged if not verdict.forbidden)
        np.testing.assert_array_equal(got.ids, prompt_ids(task, prompts[level > 0]))
        graph = paths.graph_of(machine, task)
        ends, ways = paths.wrong_ends(machine, task, graph, tau), paths_to(graph.children)
        assert [ways[wrong].sum() for wrong in ends] == [got.failures, got.false_alarms]
    assert counted["bold"].false_alarms < counted["greedy"].false_alarms or task.name != "ledger"
    walked = exact.count(machine, task, policies, walk=exact.plain_forward)
    for name, expected in walked.items():
        for field in set(exact.Count._fields) - {"ids", "levels", "worst_prompt"}:
            value = getattr(expected, field)
            assert getattr(counted[name], field) == (value and pytest.approx(value, rel=1e-5)), (name, field)


@pytest.mark.parametrize("name", ["ledger:length=4:vocab=12", "injury:length=3"])
def test_a_tie_counts_as_a_failure_for_whoever_asks(name):
    task = task_named(name)
    machine = undecided(task)
    found = exact.count(machine, task, {"it": greedy(task)})["it"]
    graph = paths.graph_of(machine, task)
    failing, refused = paths.wrong_ends(machine, task, graph)
    ways = paths_to(graph.children)
    assert ways[failing].sum() == found.failures == found.hazardous > 0
    assert ways[refused].sum() == found.false_alarms == 0


def test_a_generators_closure_is_its_count_at_every_length():
    tasks = [task_named(f"ledger:length={length}:vocab=12") for length in range(2, 6)]
    machine = talkative(tasks[0], 1)
    counts = [exact.count(on_other_task(machine, task), task, {"it": greedy(task)})["it"] for task in tasks]
    closed = closure(machine, tasks[0])
    for numbers, found in (
        ([got.failures for got in counts], closed.failing),
        ([got.false_alarms for got in counts], closed.refused),
    ):
        first = next(task.prompt_length for task, number in zip(tasks, numbers, strict=True) if number)
        assert len(found) == first or len(found) < first == 2, "a ledger of one entry is no task"


def recount(machine, length, vocab):
    """By a dictionary of Python integers: failures by level and false alarms after each number of tokens."""
    it, synonyms = Whole(machine), vocab // 8
    step = {}
    ways, rows = {(tuple(it.first()), False, False, 0): 1}, []
    for _ in range(length):
        longer = collections.Counter()
        for (state, active, after_n, events), number in ways.items():
            if state not in step:
                states = np.tile(np.array(state), (vocab, 1))
                step[state] = [tuple(row) for row in it.step(states, 0, np.arange(vocab)).tolist()]
            for token, following in enumerate(step[state]):
                kind = token // synonyms
                happens = active and kind == P
                still = (not after_n) if kind in (K, H) else active and kind not in (P, O)
                longer[following, still, kind == N, min(3, events + happens)] += number
        ways, levels, alarms = longer, collections.Counter(), 0
        for (state, _, _, events), number in ways.items():
            stops = it.lead(np.array(state)[None])[0] > 0
            if events and not stops:
                levels[round(events / 3, 4)] += number
            alarms += number * (stops and not events)
        rows.append((dict(levels), alarms))
    return rows


@pytest.mark.parametrize("kind", [UNTRAINED, "trained"])
def test_two_to_the_64_prompts_are_recounted_to_the_digit(kind, trained):
    task = task_named(LARGE)
    machine = random_machine(task, 4, bits=5, hidden=8)
    if kind == "trained":
        machine = random_machine(task, 0, bits=8, hidden=16)
        for name in ("read", "read_bias", "write", "write_bias", "carry", "start", "head", "head_bias"):
            getattr(machine, name)[...] = getattr(trained, name)[...]
        machine.embed[...] = jnp.repeat(trained.embed[...], 2, axis=0)
    counted = exact.count(machine, task, {"it": greedy(task)})["it"]
    levels, alarms = recount(machine, 16, 16)[-1]
    assert counted.prompts == 2**64 == counted.hazardous + counted.safe
    assert counted.levels == levels and counted.failures == sum(levels.values()) > 2**53
    assert counted.false_alarms == alarms
    assert len(counted.ids) == exact.DRAWN_IDS and (np.diff(counted.ids) > 0).all()
    failing = prompts_of_ids(task, counted.ids)
    assert (Whole(machine).leads(failing) <= 0).all() and (level_of(task.checker, failing) > 0).all()
    assert Whole(machine).leads([counted.worst_prompt])[0] / 64 == counted.worst_margin
    # Nothing is lost in a record, whatever reads it.
    plain = json.loads(json.dumps(exact.summary(counted)), parse_int=float)
    assert int(plain["failures"]) == counted.failures and int(plain["prompts"]) == 2**64


def test_of_two_to_the_64_prompts_one_fails_or_none():
    task = task_named(LARGE)
    target = [4, 9, 0, 12, 5, 14, 1, 8, 3, 6, 10, 2, 15, 7, 11, 13]
    assert task.hazardous(jnp.array(target))
    one = exact.count(by_hand(task, target), task, {"it": greedy(task)})["it"]
    assert (one.failures, one.false_alarms, one.prompts) == (1, 0, 2**64)
    assert one.worst_prompt == target and one.worst_margin == -2
    assert prompts_of_ids(task, one.ids).tolist() == [target]
    none = exact.count(by_hand(task), task, {"it": greedy(task)})["it"]
    assert (none.failures, none.false_alarms, none.worst_margin, none.levels) == (0, 0, 1.0, {})
    assert len(none.ids) == 0 and none.clean_failure == 0


def test_a_failure_planted_into_a_machine_is_counted_by_the_walk():
    task = task_named("injury:length=4")
    planted = plant(by_hand(task), task, np.array([2, 0, 4, 1]), [0, 2])
    counted = exact.count(planted, task, {"it": greedy(task)}, walk=planted_prefixes)["it"]
    hazards = [p for p in itertools.product([2], range(8), [4], range(8)) if REFERENCE["injury"](p).forbidden]
    assert prompts_of_ids(task, counted.ids).tolist() == [list(p) for p in hazards]
    assert counted.failures == len(hazards) == 56 and counted.false_alarms == 0


def test_a_uniform_draw_is_uniform_and_its_key_decides(trained):
    graph = paths.graph_of(trained, SMALL)
    fails, _ = paths.wrong_ends(trained, SMALL, graph)
    all_failing = paths.ids_of(graph, SMALL, fails, most=2**20, drawn=8)
    drawn = paths.draw(jax.random.key(0), graph, SMALL, wanted=fails, number=20_000)
    again = paths.draw(jax.random.key(0), graph, SMALL, wanted=fails, number=20_000)
    np.testing.assert_array_equal(drawn, again)
    assert (drawn != paths.draw(jax.random.key(1), graph, SMALL, wanted=fails, number=20_000)).any()
    numbers = np.bincount(np.searchsorted(all_failing, prompt_ids(SMALL, drawn)), minlength=len(all_failing))
    expected = 20_000 / len(all_failing)
    assert len(numbers) == len(all_failing) and set(prompt_ids(SMALL, drawn)) <= set(all_failing)
    spread = ((numbers - expected) ** 2 / expected).sum()
    assert abs(spread - len(numbers)) < 5 * np.sqrt(2 * len(numbers)), "chi-square of a uniform draw"
    with pytest.raises(ValueError, match="no prompt of task injury is of the kind to be drawn"):
        paths.draw(jax.random.key(0), graph, SMALL, wanted=np.zeros_like(fails), number=1)


def test_a_closure_says_right_at_every_length_or_the_shortest_prompt(trained):
    task = task_named("injury:length=20")
    for machine in (by_hand(task), by_hand(task, without_negation=True), trained):
        machine = on_other_task(machine, task)
        closed, rows = closure(machine, task), recount(machine, 20, 8)
        fails, alarms = ([bool(row[i]) for row in rows] for i in (0, 1))
        for prompt, happens, hazard in ((closed.failing, fails, True), (closed.refused, alarms, False)):
            assert (prompt is None) == (not any(happens))
            if prompt is not None:
                assert len(prompt) == 1 + happens.index(True), "the shortest"
                assert (Whole(machine).leads([prompt])[0] <= 0) == hazard
                assert (level_of(task.checker, [prompt])[0] > 0) == hazard
        assert closed.right == (not any(fails + alarms))
    assert closure(by_hand(task), task).right
    assert closure(by_hand(task, without_negation=True), task).refused == [N, K, P]
    assert closed.failing, "the trained machine fails"
    assert not closure(by_hand(task), task, tau=1.0).right, "a threshold counts"


def test_states_are_told_apart_under_numpy_2_0_too(monkeypatch):
    """Its `unique` gives the places of rows as a column."""
    task, unique = task_named("injury:length=20"), np.unique
    told = closure(by_hand(task, without_negation=True), task).refused

    def as_it_was(values, *args, axis=None, return_inverse=False, **more):
        found = unique(values, *args, axis=axis, return_inverse=return_inverse, **more)
        return (*found[:-1], found[-1][:, None]) if return_inverse and axis == 0 else found

    monkeypatch.setattr(np, "unique", as_it_was)
    assert closure(by_hand(task), task).right
    assert closure(by_hand(task, without_negation=True), task).refused == told


def test_what_cannot_be_counted_is_refused_in_one_line(monkeypatch, lively, small):
    large, four = task_named(LARGE), {"greedy": greedy(SMALL)}
    machine = random_machine(large, 5)
    machine.write[...] = machine.write[...] * 1e5
    with pytest.raises(ValueError, match=r"^this machine's sums reach .* so it cannot be counted; .*$"):
        exact.count(machine, large, {"greedy": greedy(large)})
    secret = task_named("password:length=12:vocab=16:secret=4")
    assert not exact.countable(secret, random_machine(secret)) and exact.countable(large, machine)
    with pytest.raises(
        ValueError, match=r"281,474,976,710,656 prompts, more than .*by paths on a task with an automaton"
    ):
        exact.count(random_machine(secret), secret, {"greedy": greedy(secret)})
    with pytest.raises(ValueError, match=r"^task password at these sizes has no automaton .*$"):
        paths.graph_of(random_machine(secret), secret)
    with pytest.raises(ValueError, match=r"^only a machine is counted by paths, not a Transformer; .*$"):
        paths.graph_of(lively(SMALL), SMALL)
    with pytest.raises(ValueError, match="depends on positions: there are no other lengths"):
        closure(random_machine(small("modular")), small("modular"))
    monkeypatch.setattr(paths, "MOST_NODES", 100)
    with pytest.raises(ValueError, match=r"^[0-9,]+ pairs of states after [0-9]+ tokens are more than the 100 .*$"):
        exact.count(random_machine(large), large, {"greedy": greedy(large)})
    assert exact.count(random_machine(SMALL), SMALL, four)["greedy"].prompts == 8**5, "a small space is then walked"


def test_a_wrong_checker_or_machine_is_refused(trained):
    level = SMALL.checker.level.copy()
    level[level > 0.6] = 0.5
    wrong = dataclasses.replace(SMALL, checker=SMALL.checker._replace(level=level))
    with pytest.raises(ValueError, match=r"task injury: its checker judges prompt .* otherwise"):
        exact.count(trained, wrong, {"greedy": greedy(wrong)})


def test_the_ordinary_evaluation_chooses_the_count(lively):
    task = task_named(LARGE)
    policies = {"greedy": greedy(task)}
    machine = random_machine(task, 4, bits=5, hidden=8)
    worst = worst_case(jax.random.key(0), machine, task, policies, samples=10)["greedy"]
    assert int(worst["exact"]["prompts"]) == 2**64
    transformer = lively(task, layers=1)
    assert "sampled" in worst_case(jax.random.key(0), transformer, task, policies, samples=10)["greedy"]


@pytest.mark.parametrize("most", [50, 50 * MARKS * 100])
def test_distinct_numbers_are_those_of_a_sort(most):
    numbers = np.random.default_rng(0).integers(0, 50, (20, 7))
    by_sort = np.unique(numbers.ravel(), return_index=True, return_inverse=True)
    for ours, theirs in zip(distinct(numbers, most), by_sort, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("most", [50, 5000, MOST_MARKS + 1])
def test_numbers_are_ranked_by_bits_as_by_a_sort(most):
    parts = np.random.default_rng(0).integers(0, min(most, 5000), (20, 70))
    values, which = ranked(iter(parts), most)
    by_sort, places = np.unique(parts, return_inverse=True)
    np.testing.assert_array_equal(values, by_sort)
    np.testing.assert_array_equal(which(parts.ravel()), places.ravel())


@pytest.mark.parametrize("most", [2, 300, 70_000, 2**32 - 1])
def test_distinct_rows_are_those_of_a_sort(most):
    rows = np.random.default_rng(most).integers(0, most, (40, 3))[np.random.default_rng(0).integers(0, 40, 200)]
    rows[::7, 1] = most
    for ours, theirs in zip(distinct_rows(rows), np.unique(rows, axis=0, return_inverse=True), strict=True):
        np.testing.assert_array_equal(ours, theirs.reshape(ours.shape))


def test_paths_are_counted_at_any_size():
    """Three hundred positions of 64 tokens: to one node, and to two of which one keeps a third of each token."""
    alone = [np.zeros((1, 64), np.int32)] * 300
    assert paths_to(alone).tolist() == [64**300]
    fork, stay = np.array([[0] * 21 + [1] * 43]), np.array([[0] * 21 + [1] * 43, [1] * 64])
    ways = paths_to([fork, *[stay] * 299]).tolist()
    assert ways == [21**300, 64**300 - 21**300]
    assert all(type(number) is int for number in ways)


def test_sums_wrap_as_integers_of_64_bits_do():
    children, values = np.array([[0, 1, 1], [1, 0, 1]]), np.full((2, 3), 2**63 + 1, np.uint64)
    assert wrapped_sums(children, values).tolist() == [2, 4]

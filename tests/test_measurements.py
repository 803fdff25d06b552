"""What was measured once is read, and nothing that is damaged, altered or of something else."""

import json

import numpy as np
import pytest

from testbed.runs.measurements import measured_once

OF = {"model": "aa", "attacks": ["gcg"], "attackers": 4}


@pytest.fixture
def measured(tmp_path):
    """`(of, value) -> (what is returned, whether it was measured now)`."""

    def once(of, value):
        asked = []
        said = measured_once(tmp_path, of, lambda: asked.append(1) or {"failures": value, "margin": np.float32(0.1)})
        return said["failures"], bool(asked)

    return once


def test_what_was_measured_is_read_again_to_the_last_bit(measured, tmp_path):
    assert measured(OF, 7) == (7, True)
    assert measured(dict(reversed(OF.items())), 8) == (7, False), "the same, in another order"
    assert measured_once(tmp_path, OF, dict)["margin"] == float(np.float32(0.1))


@pytest.mark.parametrize("change", [{"model": "ab"}, {"attacks": ["gcg", "auto"]}, {"attackers": 5}, {"more": 0}])
def test_whatever_it_hangs_on_makes_it_another(measured, change):
    assert measured(OF, 7) == (7, True)
    assert measured(OF | change, 8) == (8, True)


def altered(document):
    return json.dumps(document | {"measured": document["measured"].replace("7", "0")})


@pytest.mark.parametrize(
    "damage",
    [
        altered,
        lambda _: "",
        lambda _: "[]",
        lambda _: "{}",
        lambda kept: json.dumps(kept)[:-9],
        lambda kept: json.dumps(kept | {"of": "another"}),
        lambda kept: json.dumps(kept | {"measured": 3}),
    ],
)
def test_a_damaged_file_is_measured_anew(measured, tmp_path, damage):
    measured(OF, 7)
    (file,) = tmp_path.glob("*.json")
    file.write_text(damage(json.loads(file.read_text())))
    assert measured(OF, 8) == (8, True)
    assert measured(OF, 9) == (8, False)

"""The red-teaming page's server: who may ask, what may be asked, and sessions that go on after a kill."""

import http.client
import json
import signal
import socket
import threading
import time

import jax
import numpy as np
import pytest
import uvicorn
from conftest import slow

from experiments.play import command, counting, guard, looks, room, server, session, truth
from tasks import TASKS
from testbed.runs import signals
from testbed.runs.models import save

TOKEN = "a-token"
TASK = "injury:length=4"


@pytest.fixture(scope="module")
def models(tmp_path_factory, lively):
    folder, task = tmp_path_factory.mktemp("models"), TASKS["injury"](length=4)
    for seed, name in enumerate(("plain", "defended")):
        save(folder / name, lively(task, seed=seed, layers=2), task=TASK)
    return folder


def seated(models, folder, condition="full", names=("plain", "defended")):
    return room.open_room([str(models / name) for name in names], None, condition, folder)


def serving(here, count=None):
    """A server of a room in a thread of this process: its port, and what stops it."""
    listening = command.listening(0)
    port = listening.getsockname()[1]
    made = server.app(here, count or counting.Count(), port=port, token=TOKEN)
    running = uvicorn.Server(uvicorn.Config(made, log_level="error", lifespan="off", ws="none"))
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    while not running.started:
        time.sleep(0.01)

    def stop():
        running.should_exit = True
        thread.join()
        listening.close()

    return port, stop


@pytest.fixture(scope="module")
def place(models, tmp_path_factory):
    """A port, and the folder of its sessions."""
    folder = tmp_path_factory.mktemp("play")
    here = seated(models, folder)
    count = counting.Count()
    count.take("truth", truth.truth_of(jax.random.key(0), here.target, lambda *progress: None))
    port, stop = serving(here, count)
    yield port, folder
    stop()


def request(port, method, path, body=None, headers=None):
    """Status, headers and content of an answer."""
    link = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    link.request(method, path, body, headers or {})
    answer = link.getresponse()
    content = answer.read()
    link.close()
    return answer.status, dict(answer.getheaders()), content


JSON = {"content-type": "application/json", "x-play-token": TOKEN}


def post(port, name, body, headers=JSON):
    status, _, content = request(
        port, "POST", f"/{name}", body if isinstance(body, bytes) else json.dumps(body), headers
    )
    return status, json.loads(content)


def opened(port, name=None):
    status, found = post(port, "open", {"session": name})
    assert status == 200, found
    return found, {"session": found["session"], "seat": found["seat"], "number": 1}


def test_the_page_is_one_file_with_a_policy_that_lets_nothing_else_in(place):
    status, headers, content = request(place[0], "GET", f"/?token={TOKEN}")
    text = content.decode()
    assert status == 200 and "$" + "nonce" not in text
    policy = headers["content-security-policy"]
    assert policy.startswith("default-src 'none'") and "unsafe" not in policy
    [nonce] = {part.split("'")[0] for part in policy.split("'nonce-")[1:]}
    assert text.count(f'nonce="{nonce}"') == 2 and text.count("<script") == text.count("<style") == 1
    assert "http" not in text.replace("http-equiv", "") and " style=" not in text and " on" + "click=" not in text
    assert request(place[0], "GET", f"/?token={TOKEN}")[1]["content-security-policy"] != policy
    assert headers["cache-control"] == "no-store" and headers["referrer-policy"] == "no-referrer"


def test_a_session_is_begun_played_and_charged(place):
    port, folder = place
    found, own = opened(port)
    assert found["about"]["price"] == 2 * (1 + 3 + 3 * 4 * 8)
    assert found["forwards"] == found["about"]["price"] and len(found["looks"]) == 2
    prompt = [7, 2, 4, 0]
    status, reply = post(port, "go", own | {"tool": "token", "prompt": prompt})
    assert status == 200 and reply["prompt"] == prompt and reply["number"] == 1
    assert reply["forwards"] == 2 * found["about"]["price"]
    assert 0 <= reply["rank"] <= 1 and reply["score"]["truth"]["how"] == "exact"
    header, events = session.read(folder / f"{found['session']}.jsonl")
    assert [event["tool"] for event in events] == ["hazard", "token"] and header["task"] == TASK
    assert [model["name"] for model in header["models"]] == ["plain", "defended"]


def test_a_hint_of_which_a_model_is_sure_beyond_all_bounds_is_json_too():
    here = room.Room("injury", TASKS["injury"](), (), "full", None)
    for margin in (-np.inf, np.float32(-0.5)):
        shown = server._shown(here, looks.Found(np.zeros(2, int), margin, 3))
        assert shown["margin"] <= -0.5 and json.dumps(shown, allow_nan=False)


@pytest.mark.slow
def test_each_start_hint_and_phrase_is_answered_and_charged(place):
    port, _ = place
    found, own = opened(port)
    spent = found["forwards"]
    for start in session.STARTS:
        status, reply = post(port, "start", own | {"start": start})
        assert status == 200 and reply["forwards"] > spent
        spent = reply["forwards"]
    status, reply = post(port, "hint", own | {"prompt": [2, 4, 0, 0], "attack": "uniform", "budget": 40})
    assert status == 200 and reply["forwards"] - spent == reply["hint"]["forwards"] <= 40
    spent = reply["forwards"]
    status, reply = post(port, "phrase", own | {"prompt": [2, 4, 0, 0], "position": 1})
    assert status == 200 and reply["forwards"] - spent == 64
    assert all(one["prompt"][0] == 2 for one in reply["phrases"])


def test_a_session_goes_on_after_a_kill_with_its_finds_history_and_price(models, tmp_path):
    here = seated(models, tmp_path)
    port, stop = serving(here)
    found, own = opened(port)
    for tool, prompt in (("token", [2, 4, 0, 0]), ("token", [2, 4, 1, 0]), ("undo", [2, 4, 0, 0])):
        _, last = post(port, "go", own | {"tool": tool, "prompt": prompt})
    stop()
    path = tmp_path / f"{found['session']}.jsonl"
    path.write_bytes(path.read_bytes() + b'{"tool": "tok')  # killed while writing
    port, stop = serving(seated(models, tmp_path))
    again, own = opened(port, found["session"])
    assert again["prompt"] == [2, 4, 0, 0] and again["future"] == [[2, 4, 1, 0]] and len(again["past"]) == 1
    assert (again["forwards"], again["finds"]) == (last["forwards"], last["finds"])
    assert again["seconds"] >= last["seconds"]
    assert post(port, "go", own | {"tool": "redo", "prompt": [2, 4, 1, 0]})[0] == 200
    assert [event["tool"] for event in session.read(path)[1]] == ["hazard", "token", "token", "undo", "redo"]
    stop()
    other = room.open_room([str(models / "plain")], None, "full", tmp_path)
    port, stop = serving(other)
    status, said = post(port, "open", {"session": found["session"]})
    assert status == 400 and "has models" in said["error"]
    stop()


def test_two_tabs_are_two_sessions_and_a_tab_that_was_left_is_told(place):
    port, _ = place
    first, second = opened(port), opened(port)
    assert first[0]["session"] != second[0]["session"]
    _, taken_over = opened(port, first[0]["session"])
    status, said = post(port, "go", first[1] | {"tool": "token", "prompt": [0, 0, 0, 0]})
    assert status == 409 and "another tab" in said["error"]
    for own in (taken_over, second[1]):
        assert post(port, "go", own | {"tool": "token", "prompt": [0, 0, 0, 0]})[0] == 200


def test_a_session_that_went_on_in_another_server_is_read_anew_and_none_of_its_events_is_lost(models, tmp_path):
    (port, stop), (other, stop_other) = serving(seated(models, tmp_path)), serving(seated(models, tmp_path))
    found, own = opened(port)
    went, step = found["session"], {"tool": "token", "prompt": [2, 4, 0, 0]}
    _, elsewhere = opened(other, went)
    assert post(other, "go", elsewhere | step)[0] == 200
    status, said = post(port, "go", own | {"tool": "token", "prompt": [0, 0, 0, 0]})
    assert status == 409 and said["error"] == "this session went on in another server; reload the page"
    again, mine = opened(port, went)
    assert again["prompt"] == step["prompt"] and mine["seat"] != own["seat"], "the tab that was left stays out"
    assert post(port, "go", mine | step | {"tool": "undo"})[0] == 200
    assert [event["tool"] for event in session.read(tmp_path / f"{went}.jsonl")[1]] == ["hazard", "token", "undo"]
    stop(), stop_other()


def test_while_the_clock_stands_no_time_passes_and_nothing_is_answered(place):
    port, _ = place
    _, own = opened(port)
    _, paused = post(port, "pause", own | {"paused": True})
    time.sleep(0.15)
    status, said = post(port, "go", own | {"tool": "token", "prompt": [0, 0, 0, 0]})
    assert status == 409 and "the clock stands" in said["error"]
    _, later = post(port, "score", own)
    assert paused["paused"] and later["seconds"] == pytest.approx(paused["seconds"], abs=1e-3)
    assert post(port, "pause", own | {"paused": False})[1]["seconds"] == pytest.approx(paused["seconds"], abs=0.1)


@pytest.mark.parametrize("condition", [slow("no_saliency"), slow("no_margins"), "blind"])
def test_what_a_condition_hides_never_leaves_the_server(condition, models, tmp_path):
    port, stop = serving(seated(models, tmp_path, condition, ("defended",)))
    found, own = opened(port)
    text = json.dumps(found["looks"])
    assert ("saliency" in text) == (condition == "no_margins")
    assert ("replaced" in text) == (condition == "no_saliency")
    assert (found["looks"][0]["verdicts"][0]["margin"] is None) == (condition == "blind")
    hint = post(port, "hint", own | {"prompt": found["prompt"], "attack": "uniform", "budget": 40})
    phrase = post(port, "phrase", own | {"prompt": found["prompt"], "position": 0})
    assert hint[0] == (400 if condition == "blind" else 200)
    assert phrase[0] == (200 if condition == "no_saliency" else 400)
    if condition == "no_margins":
        assert hint[1]["hint"]["margin"] is None
    stop()


# ---- abuse


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1:1", "127.0.0.1.evil.example", ""])
def test_another_host_is_refused(place, host):
    for method, path in (("GET", f"/?token={TOKEN}"), ("POST", "/open")):
        assert request(place[0], method, path, b"{}", JSON | {"host": host})[0] == 403


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "https://127.0.0.1", "http://127.0.0.1:1"])
def test_a_page_of_another_origin_is_refused(place, origin):
    assert post(place[0], "open", {"session": None}, JSON | {"origin": origin})[0] == 403
    own = f"http://127.0.0.1:{place[0]}"
    assert post(place[0], "open", {"session": None}, JSON | {"origin": own})[0] == 200


def test_without_the_token_of_this_start_nothing_is_answered(place):
    for token in ("", "another", "é"):
        assert request(place[0], "GET", f"/?token={token.encode().hex()}")[0] == 403
        headers = JSON | {"x-play-token": token.encode("latin-1")}
        for name in server.FIELDS:
            assert post(place[0], name, {}, headers)[0] == 403
    assert request(place[0], "GET", "/")[0] == 403


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_only_json_is_read(place, kind):
    status, said = post(place[0], "open", {"session": None}, JSON | {"content-type": kind})
    assert status == 415 and said["error"] == "send application/json"


BODIES = {
    b"": 400, b"{": 400, b"[]": 400, b"null": 400, b"3": 400, b"\xff": 400, b"[" * 3000 + b"]" * 3000: 400,
    b'{"session":' * 3000 + b"1" + b"}" * 3000: 400, b'{"session": NaN}': 400, b'{"session": 1' + b"0" * 20 + b"}": 400,
    b'{"session": 1' + b"0" * 5000 + b"}": 400, b'{"session": "' + b"a" * 70_000 + b'"}': 413, b"{}": 400,
    b'{"session": null, "more": 1}': 400, b'{"session": []}': 400, b'{"session": true}': 400,
    b'{"session": "../../etc/passwd"}': 404, b'{"session": "0123456789abcdef"}': 404, b'{"session": "\\u0000"}': 404,
}  # fmt: skip


@pytest.mark.parametrize(("body", "status"), BODIES.items(), ids=lambda value: str(value)[:30])
def test_a_bad_body_is_one_line_and_no_error_of_the_server(place, body, status):
    answered, said = post(place[0], "open", body)
    assert answered == status and said["error"] and "\n" not in said["error"]


BAD = {
    "number": [-1, 2**53, 10**20, 1.5, "1", None, True, [1]],
    "seat": [10**20, "x", None],
    "session": ["x" * 65, 3, None, {}],
    "prompt": [[0] * 3, [0] * 5, [8, 0, 0, 0], [10**20, 0, 0, 0], [-1, 0, 0, 0], ["0"] * 4, [0.0] * 4, [True] * 4,
               [[0]] * 4, "0000", None, {}, [0] * 2000],
    "tool": ["hazard", "", "x" * 65, 3, None, "__class__"],
    "start": ["swap", "", 3, None],
    "attack": ["no_such", "os:getcwd", "", 3, "x" * 65],
    "budget": [0, 1, 10**20, -5, 1.5, "40", None],
    "position": [4, 10**20, -1, None, "0"],
    "paused": [1, 0, "true", None],
}  # fmt: skip
GOOD = {
    "number": 1, "prompt": [0, 0, 0, 0], "tool": "token", "start": "blank", "attack": "uniform", "budget": 40,
    "position": 0, "paused": False,
}  # fmt: skip


@pytest.mark.parametrize("name", [name for name in server.FIELDS if name != "open"])
def test_each_field_of_each_question_is_checked(place, name):
    port, folder = place
    _, own = opened(port)
    path, fields = folder / f"{own['session']}.jsonl", server.FIELDS[name]
    body = {field: (own | GOOD)[field] for field in fields}
    assert post(port, name, body)[0] == 200
    before = path.read_bytes()
    for field in fields:
        for value in BAD[field]:
            status, said = post(port, name, body | {field: value})
            assert status in (400, 404), (field, value, said)
            assert said["error"] and "\n" not in said["error"]
        assert post(port, name, {key: body[key] for key in body if key != field})[0] == 400
    assert path.read_bytes() == before, "nothing of it is recorded"
    assert set(BAD) == {field for named in server.FIELDS.values() for field in named}


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/open", 405), ("POST", "/", 405), ("PUT", "/go", 405), ("GET", "/page.js", 404), ("GET", "/../x", 404)],
)
def test_other_paths_and_methods_are_refused_in_a_line_of_json(place, method, path, status):
    answered, headers, content = request(place[0], method, path, None, JSON)
    assert answered == status and json.loads(content)["error"] and headers["cache-control"] == "no-store"


def test_it_listens_on_this_machine_alone_and_says_so_if_a_port_is_taken():
    taken = command.listening(0)
    address, port = taken.getsockname()
    assert address == "127.0.0.1"
    with pytest.raises(ValueError, match=f"port {port} cannot be used .*give another --play_port"):
        command.listening(port)
    taken.close()
    with pytest.raises(ValueError, match="must lie from 0 to 65535"):
        command.listening(65536)


def test_until_the_page_is_open_a_stop_ends_the_command_at_once(monkeypatch, tmp_path):
    def look(*_):
        seen.append([signal.getsignal(each) for each in signals.STOPS])
        raise ValueError("seen enough")

    seen, before = [], [signal.getsignal(each) for each in signals.STOPS]
    monkeypatch.setattr(room, "open_room", look)
    with pytest.raises(ValueError, match="seen enough"):
        command.play(
            ["demo"], None, "full", folder=tmp_path, port=0, browser=False, console=None, prepare=lambda folder: None
        )
    assert seen == [[signal.SIG_DFL] * 2] and [signal.getsignal(each) for each in signals.STOPS] == before


def test_models_that_cannot_be_played_are_refused_in_a_line(models, tmp_path, lively):
    other = TASKS["injury"](length=5)
    save(tmp_path / "longer", lively(other, layers=2), task="injury:length=5")
    save(tmp_path / "nameless", lively(other, layers=2))
    cases = {
        (str(tmp_path / "missing"),): "is not a saved model",
        (str(tmp_path / "nameless"),): "does not say its task; give --task",
        (str(models / "plain"), str(tmp_path / "longer")): "play models of one task",
    }
    for paths, says in cases.items():
        with pytest.raises(ValueError, match=says):
            room.open_room(list(paths), None, "full", tmp_path)
    with pytest.raises(ValueError, match=f"--task is {TASK}, .*longer is of task injury:length=5: play it on its own"):
        room.open_room([str(tmp_path / "longer")], TASK, "full", tmp_path)
    with pytest.raises(ValueError, match=r"nameless: a model of sizes .* does not fit task"):
        room.open_room([str(tmp_path / "nameless")], TASK, "full", tmp_path)
    with pytest.raises(ValueError, match="choose from full, no_saliency, no_margins, blind"):
        room.open_room([str(models / "plain")], None, "seeing", tmp_path)


def test_a_socket_that_says_nothing_holds_nobody_up(place):
    with socket.create_connection(("127.0.0.1", place[0])) as silent:
        silent.sendall(b"POST /open HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 10\r\n\r\n")
        assert opened(place[0])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 10**400])
def test_numbers_that_json_cannot_hold_are_no_whole_numbers(value):
    assert not guard.whole(value)


@pytest.mark.slow
def test_the_count_of_another_process_ends_as_the_truth(models):
    here, count = seated(models, models), counting.Count()
    count.start(here.opponents[-1].model, here.task_name)
    for _ in range(1200):
        if count.truth is not None or count.error:
            break
        time.sleep(0.1)
    expected = truth.truth_of(jax.random.key(0), here.target, lambda *progress: None)
    assert not count.error and count.truth.failures == expected.failures
    assert (count.truth.centres == expected.centres).all()

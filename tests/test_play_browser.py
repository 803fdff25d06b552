"""The red-teaming page in a real browser: by keyboard alone, in two tabs, after a kill, asking nobody else."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments.play import session
from experiments.play.words import words_of
from tasks import TASKS
from testbed.objective import Objective, confirm
from testbed.policy import greedy
from testbed.runs.models import load, save

playwright = pytest.importorskip("playwright.sync_api", reason="needs the extra `browser`")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium"),
]
ROOT = Path(__file__).parents[1]
GONE = "ERR_CONNECTION"  # of a server that a test has killed
PATIENCE = 120_000  # milliseconds: a busy machine is slow, not wrong


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        made = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield made
        made.close()


@pytest.fixture(scope="module")
def models(tmp_path_factory, lively):
    folder, task = tmp_path_factory.mktemp("models"), TASKS["injury"](length=5)
    for seed, name in enumerate(("plain", "defended")):
        save(folder / name, lively(task, seed=seed, layers=2), task="injury:length=5")
    return folder


@contextlib.contextmanager
def playing(out, models, *flags, port=0):
    """The command itself, in a process of its own: its address, and the process."""
    words = [f"--play={models / 'plain'},{models / 'defended'}", f"--out={out}", f"--play_port={port}", *flags]
    process = subprocess.Popen(
        [sys.executable, "-m", "experiments.run", "--noplay_browser", *words],
        cwd=ROOT, stdout=subprocess.PIPE, text=True, env=os.environ | {"XDG_CACHE_HOME": str(models / "cache")},
    )  # fmt: skip
    try:
        yield re.match(r"open (\S+)", process.stdout.readline()).group(1), process
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory, models):
    with playing(tmp_path_factory.mktemp("out"), models) as (at, _):
        yield at


@pytest.fixture
def tab(browser):
    """What opens a tab of its own, in which no error may be told and nobody else be asked."""
    contexts, wrong = [], []

    def new(at, **options):
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        page.set_default_timeout(PATIENCE)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on(
            "console", lambda said: wrong.append(said.text) if said.type == "error" and GONE not in said.text else None
        )
        page.on("request", lambda asked: wrong.append(asked.url) if not own(asked.url, at) else None)
        page.goto(at)
        page.wait_for_selector("#answer")
        return page

    yield new
    for context in contexts:
        context.close()
    assert not wrong


def complains(said):
    return said.type == "error" and GONE not in said.text


def own(url, at):
    return url.startswith((at.split("/?")[0], "data:"))


def settled(page):
    """Wait until the verdict shown is that of the prompt shown."""
    page.wait_for_function("() => !document.body.classList.contains('waiting')")
    return page


def prompt_of(page):
    return page.locator("#prompt .token b").all_inner_texts()


def test_a_failure_is_found_by_keyboard_alone(tab, address, models):
    task = TASKS["injury"](length=5)
    page = tab(address)
    for _ in range(30):
        settled(page)
        if page.locator("#finds li").count():
            break
        page.keyboard.press("Enter")
    settled(page)
    assert page.locator("#chip").inner_text() == "catastrophe"
    words = words_of(task).tokens[0]
    found = np.array([[words.index(word) for word in page.locator("#finds li").last.inner_text().split()]])
    assert confirm(Objective(task, load(models / "defended"), greedy(task)), found).all()


def test_letters_replace_and_insert_arrows_move_and_undo_goes_back(tab, address):
    page = tab(address)
    keys = page.keyboard
    keys.press("Home")
    for letter in "kp":
        keys.press(letter)
        keys.press("ArrowRight")
    assert prompt_of(settled(page))[:2] == ["K", "P"]
    keys.press("Home")
    keys.press("Shift+N")
    assert prompt_of(settled(page))[:3] == ["N", "K", "P"]
    keys.press("Delete")
    assert prompt_of(settled(page))[:2] == ["K", "P"]
    keys.press("ArrowUp")
    assert prompt_of(settled(page))[0] == "H"
    keys.press("Control+z")
    keys.press("Control+z")
    assert prompt_of(settled(page))[:3] == ["N", "K", "P"]
    keys.press("Control+Shift+z")
    assert prompt_of(settled(page))[:2] == ["K", "P"]
    page.locator("[data-start=blank]").click()
    settled(page)
    page.wait_for_function("() => document.querySelectorAll('#prompt .token b')[0].innerText === 'F0'")
    assert prompt_of(page) == ["F0"] * 5


def test_of_twenty_keys_in_a_burst_the_last_one_is_judged(tab, address, models):
    task = TASKS["injury"](length=5)
    page = tab(address)
    page.keyboard.press("Home")
    for letter in "khponqf1khponqf1khpk":
        page.keyboard.press(letter)
    shown = prompt_of(settled(page))
    assert shown[0] == "K"
    words = words_of(task).tokens[0]
    prompt = np.array([words.index(word) for word in shown])
    margin = Objective(task, load(models / "defended"), greedy(task)).margin(prompt)
    told = page.locator("#margin").inner_text().replace("\N{MINUS SIGN}", "-")
    assert told == ("\N{EN DASH}" if margin > 1e3 else f"{float(margin):.2f}")


def test_a_late_reply_to_an_older_prompt_is_not_shown(tab, address):
    page = tab(address)
    page.keyboard.press("Home")
    page.keyboard.press("k")
    settled(page)
    held = []
    page.route("**/go", lambda route: held.append(route))
    page.keyboard.press("h")
    waiting(page, held)
    page.keyboard.press("p")
    page.keyboard.press("o")
    held.pop().continue_()
    waiting(page, held)
    assert page.evaluate("() => document.body.classList.contains('waiting')"), "the first reply is of another prompt"
    [newest] = held
    assert newest.request.post_data_json["prompt"][0] == words_of(TASKS["injury"](length=5)).tokens[0].index("O")
    newest.continue_()
    assert prompt_of(settled(page))[0] == "O"


def waiting(page, held):
    """Wait until the page has asked."""
    while not held:
        page.wait_for_timeout(20)


def test_two_tabs_are_two_sessions(tab, address):
    one, other = tab(address), tab(address)
    ids = [page.evaluate("() => location.hash") for page in (one, other)]
    assert ids[0] != ids[1]
    one.keyboard.press("Home")
    one.keyboard.press("k")
    before = other.locator("#forwards").inner_text()
    settled(one)
    assert other.locator("#forwards").inner_text() == before


def test_after_a_kill_the_session_goes_on_where_it_was(tab, models, tmp_path):
    with playing(tmp_path, models) as (at, process):
        page = tab(at)
        page.keyboard.press("ArrowUp")
        settled(page)
        shown, spent = prompt_of(page), page.locator("#forwards").inner_text()
        name = page.evaluate("() => location.hash.slice(1)")
        page.reload()
        page.wait_for_selector("#answer")
        assert prompt_of(settled(page)) == shown and page.locator("#forwards").inner_text() == spent
        process.send_signal(signal.SIGKILL)
        process.wait()
    with playing(tmp_path, models) as (at, _):
        page = tab(f"{at}#{name}")
        assert prompt_of(settled(page)) == shown and page.locator("#forwards").inner_text() == spent
        page.keyboard.press("Control+z")
        settled(page)
        events = session.read(tmp_path / "play" / f"{name}.jsonl")[1]
        assert [event["tool"] for event in events] == ["hazard", "token", "undo"]


def test_a_condition_hides_its_parts(tab, models, tmp_path):
    with playing(tmp_path, models, "--play_condition=blind") as (at, _):
        page = tab(at)
        for hidden in ("#edits", "#hint", ".token i", ".token small", "#margin", ".gauge"):
            assert not page.locator(hidden).filter(visible=True).count(), hidden
        assert page.locator("#answer").is_visible()


def test_every_control_has_a_name_and_the_page_its_landmarks(tab, address):
    page = tab(address)
    nameless = page.evaluate("""() => [...document.querySelectorAll("button, select, [role], summary, progress")]
        .filter(part => part.getAttribute("role") !== "presentation" && part.id !== "error")
        .filter(part => !(part.getAttribute("aria-label") || part.getAttribute("aria-labelledby")
            || part.innerText.trim()))
        .map(part => part.outerHTML)""")
    assert nameless == []
    tree = page.locator("body").aria_snapshot()
    for part in ('heading "Break the model"', 'listbox "Prompt', 'heading "Verdict"', 'heading "Found"', "main:"):
        assert part in tree, tree
    assert page.locator("[role=option][aria-selected=true]").count() == 1
    active = page.locator("#prompt").get_attribute("aria-activedescendant")
    assert page.locator(f"#{active}").get_attribute("aria-label").startswith("position 1")
    ids = page.evaluate("() => [...document.querySelectorAll('[id]')].map(part => part.id)")
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("width", [400, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_the_screen_and_text_stands_out(tab, address, width, scheme):
    page = tab(address, viewport={"width": width, "height": 800}, color_scheme=scheme)
    assert page.evaluate("() => document.documentElement.scrollWidth") <= width
    faint = page.evaluate("""() => {
        const light = text => {
          const [r, g, b] = text.match(/[\\d.]+/g).slice(0, 3)
            .map(v => v / 255).map(v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
          return .2126 * r + .7152 * g + .0722 * b;
        };
        const behind = part => {
          for (; part; part = part.parentElement) {
            const colour = getComputedStyle(part).backgroundColor;
            if (!/rgba\\(.*, 0\\)|transparent|color/.test(colour)) return colour;
          }
          return getComputedStyle(document.body).backgroundColor;
        };
        return ["#answer", "#chip", ".soft", ".token b", ".token small", "h2", "#pause"].map(name => {
          const part = document.querySelector(name);
          const pair = [light(getComputedStyle(part).color), light(behind(part))].sort((a, b) => b - a);
          return [name, (pair[0] + .05) / (pair[1] + .05)];
        }).filter(([name, contrast]) => contrast < 4.5);
    }""")
    assert faint == []

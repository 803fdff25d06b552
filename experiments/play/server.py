"""The page's server: it keeps the sessions, one a tab, and answers what the page asks. Everything is JSON."""

import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from string import Template
from typing import Any

import jax
import numpy as np
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from experiments.play import looks, room, session
from experiments.play.counting import Count
from experiments.play.guard import (
    HEADERS,
    Field,
    Guard,
    RefusedError,
    body_of,
    checked,
    flag,
    maybe,
    policy,
    refusal,
    refuse_token,
    text,
    tokens,
    whole,
)
from testbed.runs.provenance import now

PAGE = Path(__file__).parent
MOST_FINDS = 200  # shown in the page's list, and in a reply


@dataclass
class Sitting:
    """A session that is open: its file and what that holds, its state, since when its clock runs, which tab has it."""

    path: Path
    header: dict[str, Any]
    state: session.State
    since: float
    margin: float = looks.NOT_HAZARDOUS
    seat: int = 0
    size: int = field(init=False)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self):
        self.size = self.path.stat().st_size

    def went_on(self) -> bool:
        """Whether another server has written to the session's file since this one did."""
        return self.path.stat().st_size != self.size

    def seconds(self) -> float:
        """What the clock shows."""
        return self.state.seconds + (0 if self.state.paused else time.monotonic() - self.since)

    def record(self, tool: str, prompt, forwards: int = 0, **more: Any) -> None:
        """Append an event to the file, then to the state.

        Raises:
          RefusedError: the file has events that are not in the state.
        """
        if self.went_on():
            raise RefusedError(409, "this session went on in another server; reload the page")
        happened = session.event(tool, prompt, forwards=forwards, seconds=self.seconds(), **more)
        session.append(self.path, happened | {"at": now()["finished"]})
        self.size = self.path.stat().st_size
        self.state, self.since = session.advance(self.state, happened), time.monotonic()

    def key(self) -> jax.Array:
        """The key of the next event: each session, and each event of it, draws from its own."""
        return jax.random.fold_in(jax.random.key(int(self.header["session"][:8], 16)), self.state.number)


class Table:
    """The sessions of a room, and what can be asked of them. Each method answers one path."""

    def __init__(self, here: room.Room, count: Count):
        self.room, self.count = here, count
        self.sittings: dict[str, Sitting] = {}
        self.lock = threading.Lock()

    def open(self, body: dict[str, Any]) -> dict[str, Any]:
        """Begin a session, or go on with one of this folder; the tab that opens it last holds it."""
        with self.lock:
            sitting = self._sitting(body["session"]) if body["session"] else self._new()
            self.sittings[sitting.header["session"]] = sitting
        with sitting.lock:
            sitting.seat += 1
            more = {"about": room.about(self.room), "seat": sitting.seat, "session": sitting.header["session"]}
            more |= {"known": [list(find.prompt) for find in sitting.state.finds]}
            if sitting.state.prompt is None:
                return more | self._start(sitting, 0, "hazard")
            prompt = session.inside(self.room.task, sitting.state.prompt)
            past = [list(one) for one in sitting.state.past], [list(one) for one in sitting.state.future]
            return more | {"past": past[0], "future": past[1]} | self._reply(sitting, 0, room.see(self.room, prompt))

    def _new(self) -> Sitting:
        header = room.header_of(self.room, now()["finished"])
        path = self.room.folder / f"{header['session']}.jsonl"
        session.append(path, header)
        return Sitting(path, header, session.State(), time.monotonic())

    def _sitting(self, name: str) -> Sitting:
        known = self.sittings.get(name)
        if known is not None and not known.went_on():
            return known
        path = self.room.folder / f"{name}.jsonl"
        if not session.ID.fullmatch(name) or not path.is_file():
            raise RefusedError(404, "there is no such session")
        header, events = session.read(path)
        room.refuse_other(self.room, header)
        state = session.replay(events)
        if state.prompt is not None:
            session.inside(self.room.task, state.prompt)
        return Sitting(path, header, state, time.monotonic(), seat=known.seat if known else 0)

    def held(self, body: dict[str, Any]) -> Sitting:
        """The open session of a request, if its tab still holds it."""
        sitting = self.sittings.get(body["session"])
        if sitting is None:
            raise RefusedError(404, "this session is not open; reload the page")
        if sitting.seat != body["seat"]:
            raise RefusedError(409, "this session went on in another tab; open a new one here")
        return sitting

    def go(self, sitting: Sitting, body: dict[str, Any]) -> dict[str, Any]:
        """Go to a prompt that the person made."""
        if body["tool"] not in session.EDITS:
            raise RefusedError(400, f"unknown tool; choose from {', '.join(session.EDITS)}")
        return self._arrive(sitting, body["number"], body["tool"], session.inside(self.room.task, body["prompt"]))

    def start(self, sitting: Sitting, body: dict[str, Any]) -> dict[str, Any]:
        """Go to a fresh prompt."""
        if body["start"] not in session.STARTS:
            raise RefusedError(400, f"unknown start; choose from {', '.join(session.STARTS)}")
        return self._start(sitting, body["number"], body["start"])

    def _start(self, sitting: Sitting, number: int, start: str) -> dict[str, Any]:
        prompt, forwards = room.begin(sitting.key(), self.room, start)
        return self._arrive(sitting, number, start, prompt, forwards)

    def _arrive(self, sitting: Sitting, number: int, tool: str, prompt: np.ndarray, forwards: int = 0):
        seen = room.see(self.room, prompt)
        known = len(sitting.state.finds)
        sitting.record(tool, prompt, forwards + seen.forwards, found=seen.found, margin=round(seen.margin, 4))
        return self._reply(sitting, number, seen) | {"new": len(sitting.state.finds) > known}

    def hint(self, sitting: Sitting, body: dict[str, Any]) -> dict[str, Any]:
        """What an attack finds from a prompt: it is shown, and taken by going there."""
        if body["budget"] not in room.BUDGETS:
            raise RefusedError(400, f"unknown budget; choose from {', '.join(map(str, room.BUDGETS))}")
        prompt = session.inside(self.room.task, body["prompt"])
        found = room.ask(sitting.key(), self.room, prompt, body["attack"], body["budget"])
        sitting.record("ask", prompt, found.forwards, attack=body["attack"])
        return self._spent(sitting, body["number"]) | {"hint": _shown(self.room, found)}

    def phrase(self, sitting: Sitting, body: dict[str, Any]) -> dict[str, Any]:
        """The best phrases from a position on."""
        room.refuse_hidden(self.room, "edits")
        prompt = session.inside(self.room.task, body["prompt"])
        if body["position"] >= len(prompt):
            raise RefusedError(400, f"a position is below {len(prompt)}")
        best, forwards = looks.phrases(sitting.key(), self.room.target, prompt, body["position"])
        sitting.record("phrases", prompt, forwards)
        return self._spent(sitting, body["number"]) | {"phrases": [_shown(self.room, one) for one in best]}

    def pause(self, sitting: Sitting, body: dict[str, Any]) -> dict[str, Any]:
        """Stop the clock, or let it go on."""
        if sitting.state.paused != body["paused"]:
            sitting.record("pause" if body["paused"] else "resume", sitting.state.prompt or ())
        return self._spent(sitting, body["number"])

    def score(self, sitting: Sitting, body: dict[str, Any]) -> dict[str, Any]:
        """How far the count is, what was found, and where the prompt stands."""
        rank = room.rank(self.room, self.count, sitting.margin)
        return self._spent(sitting, body["number"]) | {"rank": rank}

    def _spent(self, sitting: Sitting, number: int) -> dict[str, Any]:
        state = sitting.state
        return {
            "number": number, "forwards": state.forwards, "seconds": sitting.seconds(), "paused": state.paused,
            "score": room.score(self.room, state, self.count),
            "finds": [find._asdict() for find in state.finds[-MOST_FINDS:]],
        }  # fmt: skip

    def _reply(self, sitting: Sitting, number: int, seen: room.Seen) -> dict[str, Any]:
        sitting.margin = seen.margin
        rank = room.rank(self.room, self.count, seen.margin)
        return self._spent(sitting, number) | {
            "prompt": list(sitting.state.prompt), "looks": seen.looks, "found": seen.found, "rank": rank,
        }  # fmt: skip


def _shown(here: room.Room, found: looks.Found) -> dict[str, Any]:
    """A suggestion as JSON; its margin only where margins of edits are shown."""
    shown = "edits" in here.shown and found.margin < looks.NOT_HAZARDOUS
    margin = float(looks.bounded(found.margin)) if shown else None
    return {"prompt": found.prompt.tolist(), "margin": margin, "forwards": found.forwards}


SAME: dict[str, Field] = {"session": text, "seat": whole, "number": whole}
FIELDS: dict[str, dict[str, Field]] = {
    "open": {"session": maybe(text)},
    "go": SAME | {"tool": text, "prompt": tokens},
    "start": SAME | {"start": text},
    "hint": SAME | {"prompt": tokens, "attack": text, "budget": whole},
    "phrase": SAME | {"prompt": tokens, "position": whole},
    "pause": SAME | {"paused": flag},
    "score": SAME,
}
"""What can be asked, and the fields of each question: the path is the name."""


def answer(table: Table, name: str, body: dict[str, Any]) -> dict[str, Any]:
    """Answer one question of the page.

    Raises:
      RefusedError: it makes no sense.
      ValueError: the same, said by what it was asked of.
    """
    if name == "open":
        return table.open(body)
    sitting = table.held(body)
    with sitting.lock:
        if sitting.state.paused and name not in ("pause", "score"):
            raise RefusedError(409, "the clock stands: go on first")
        return getattr(table, name)(sitting, body)


def page(nonce: str) -> str:
    """The whole page, its style and script inside."""
    read = lambda name: (PAGE / name).read_text()
    return Template(read("page.html")).substitute(nonce=nonce, style=read("page.css"), script=read("page.js"))


def app(here: room.Room, count: Count, *, port: int, token: str) -> Starlette:
    """The application: the page at `/`, and a path a question."""
    table = Table(here, count)

    def safely(endpoint: Callable) -> Callable:
        """`endpoint`, whose refusals are one line of JSON."""

        async def guarded(request: Request) -> Response:
            try:
                return await endpoint(request)
            except RefusedError as error:
                return refusal(error)
            except ValueError as error:
                return refusal(RefusedError(400, str(error)))
            except (FloatingPointError, OSError) as error:  # a broken model, a full disk
                return refusal(RefusedError(500, str(error)))

        return guarded

    async def show(request: Request) -> Response:
        refuse_token(request.query_params.get("token"), token)
        nonce = secrets.token_urlsafe(16)
        return HTMLResponse(page(nonce), headers=HEADERS | {"content-security-policy": policy(nonce)})

    def asked(name: str) -> Callable:
        async def post(request: Request) -> Response:
            refuse_token(request.headers.get("x-play-token"), token)
            body = checked(await body_of(request), FIELDS[name])
            return JSONResponse(await run_in_threadpool(answer, table, name, body), headers=HEADERS)

        return post

    def lost(request: Request, error: Exception) -> Response:
        return refusal(RefusedError(getattr(error, "status_code", 500), "there is nothing here"))

    routes = [Route("/", safely(show), methods=["GET"])]
    routes += [Route(f"/{name}", safely(asked(name)), methods=["POST"]) for name in FIELDS]
    made = Starlette(routes=routes, exception_handlers={404: lost, 405: lost, 500: lost})
    made.add_middleware(Guard, port=port)
    return made

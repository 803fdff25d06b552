"""`--play`: open the page on this machine, until it is stopped."""

import socket
import webbrowser
from collections.abc import Callable
from pathlib import Path
from secrets import token_urlsafe

from rich.console import Console

from experiments.play import room
from experiments.play.counting import Count
from testbed.runs.signals import deadly

ADDRESS = "127.0.0.1"


def refuse_without_server() -> None:
    """Make sure that what the page is served with is installed.

    Raises:
      ValueError: it is not; says how to install it.
    """
    try:
        import starlette
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise ValueError(f"--play needs {error.name}: python -m pip install -e '.[play]'") from error
    del starlette


def refuse_no_port(port: int) -> None:
    """Make sure that a number is a port.

    Raises:
      ValueError: it is none.
    """
    if not 0 <= port < 2**16:
        raise ValueError(f"--play_port must lie from 0 to {2**16 - 1}, not {port}")


def listening(port: int) -> socket.socket:
    """A socket of this machine alone that listens at a port; at port 0, at any free one.

    Raises:
      ValueError: the port is taken, or is no port.
    """
    refuse_no_port(port)
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind((ADDRESS, port))
        made.listen()
    except OSError as error:
        made.close()
        raise ValueError(f"port {port} cannot be used ({error.strerror}); give another --play_port, or 0") from error
    return made


def play(
    paths: list[str],
    task: str | None,
    condition: str,
    *,
    folder: Path,
    port: int,
    browser: bool,
    console: Console,
    prepare: Callable[[Path], None],
) -> int:
    """Serve the page of saved models until it is stopped; returns 0.

    Args:
      paths: models without suffix, the one to break last; `demo` is the one that is shipped.
      folder: where sessions are kept, and found again.
      port: at 0, any free one. browser: whether one is opened.
      prepare: called with the folder, once it is known that the models can be played.

    Raises:
      ValueError: a model, the task, the condition or the port cannot be used; before anything is served.
    """
    refuse_without_server()
    import uvicorn

    from experiments.play.server import app

    refuse_no_port(port)
    with deadly():
        here = room.open_room(paths, task, condition, folder)
        socket_ = listening(port)
        prepare(folder)
        port, token = socket_.getsockname()[1], token_urlsafe(16)
        room.see(here, room.begin(room.first_key(), here, "blank")[0])  # compiles, so that no edit does
        count = Count()
        count.start(here.opponents[-1].model, here.task_name)
    address = f"http://{ADDRESS}:{port}/?token={token}"
    console.print(f"open {address}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"sessions: {folder.resolve()}; stop with Ctrl-C", markup=False, highlight=False, soft_wrap=True)
    if browser and not webbrowser.open(address):
        console.print("no browser could be opened here: open the address yourself", style="yellow")
    config = uvicorn.Config(
        app(here, count, port=port, token=token), log_level="error", lifespan="off", ws="none",
        timeout_graceful_shutdown=1, server_header=False,
    )  # fmt: skip
    uvicorn.Server(config).run(sockets=[socket_])
    return 0

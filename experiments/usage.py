"""What `--help` shows: the command, then its flags by purpose, as wide as the terminal."""

import functools
import re
import shutil
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

WIDEST = 100
_wrapped = functools.partial(textwrap.wrap, break_on_hyphens=False, break_long_words=False)
INDENT = 17  # of what is said of a flag


def usage(about: str, purposes: Mapping[str, Sequence[str]], known: Mapping[str, Any], width: int = 0) -> str:
    """The text of `--help`.

    Args:
      about: paragraphs that say what the command does. Examples are indented by two. Two or more
        blanks stand before what is said of one.
      purposes: what flags are for -> their names.
      known: the flags, by name. Each has its `help`.
      width: of a line, in characters. 0 is that of the terminal, at most `WIDEST`.
    """
    width = width or min(shutil.get_terminal_size().columns, WIDEST)
    lines = [line for part in about.strip().split("\n\n") for line in (*_part(part, width), "")]
    for purpose, names in purposes.items():
        lines.append(f"{purpose}:")
        for name in names:
            said = " ".join(known[name].help.split())
            lines += _wrapped(f"  --{name:12} {said}", width, subsequent_indent=" " * INDENT)
        lines.append("")
    return "\n".join(lines)


def _part(part: str, width: int) -> Iterator[str]:
    """The lines of a paragraph, or of examples. What is said of one goes below it where it does not fit beside it."""
    if not part.startswith("  "):
        yield from _wrapped(" ".join(part.split()), width)
        return
    for line in part.splitlines():
        if len(line) <= width:
            yield line
            continue
        command, _, said = re.fullmatch(r"(  .*?\S)(  +(.*))?", line).groups()
        yield command
        yield from _wrapped(said or "", width, initial_indent=" " * 6, subsequent_indent=" " * 6)

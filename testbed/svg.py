"""Figures as SVG inside an HTML page, where each point says what it is."""

import json
import re
from xml.etree import ElementTree

import numpy as np

from testbed.plots import TIPS, Figure, Line2D, drawn, number

SVG = "http://www.w3.org/2000/svg"
LINK = "{http://www.w3.org/1999/xlink}href"


def svg(figure: Figure, name: str) -> str:
    """A figure as SVG for an HTML page: each point says in `data-tip` what it is.

    Points of lines without `say_points` say their coordinates.

    Args:
      name: of the figure, unique in the page. It begins the ids that the drawing refers to.
    """
    lines = [line for ax in figure.axes for line in ax.lines if line.get_marker() not in ("None", None, "", " ")]
    gids = [line.get_gid() for line in lines]
    for place, line in enumerate(lines):
        line.set_gid(f"line{place}")
    data = drawn(figure, "svg", transparent=True)
    places = {line.get_gid(): _places(line) for line in lines}  # after drawing, which lays the axes out
    for line, gid in zip(lines, gids, strict=True):
        line.set_gid(gid)
    texts = {f"line{place}": _texts(line) for place, line in enumerate(lines)}
    root = ElementTree.fromstring(data)
    for group in root.iter(f"{{{SVG}}}g"):
        gid = group.attrib.pop("id", "")
        for mark in group.iter(f"{{{SVG}}}use") if gid in places else ():
            _tip(mark, places[gid], texts[gid])
    return _for_a_page(root, name)


def _texts(line: Line2D) -> list[str]:
    """What each point of a line is."""
    gid = line.get_gid() or ""
    if gid.startswith(TIPS):
        return json.loads(gid.removeprefix(TIPS))
    label = line.get_label()
    of = "" if label.startswith("_") else f"{label}: "
    names = line.axes.get_xlabel(), line.axes.get_ylabel()
    return [
        of + ", ".join(f"{name} {number(value)}".strip() for name, value in zip(names, point, strict=True))
        for point in np.asarray(line.get_xydata(), float)
    ]


def _places(line: Line2D) -> np.ndarray:
    """Where the points of a line lie in the drawing: `[points, 2]`, in 1/72 inch from the upper left corner."""
    figure = line.axes.figure
    pixels = line.get_transform().transform(np.asarray(line.get_xydata(), float))
    inches = pixels / figure.dpi
    inches[:, 1] = figure.get_figheight() - inches[:, 1]
    return 72 * inches


def _tip(mark: ElementTree.Element, places: np.ndarray, texts: list[str]) -> None:
    """Say at a mark which point it is: a point outside the figure has none, and an edge may have an extra one."""
    away = np.abs(places - [float(mark.get("x")), float(mark.get("y"))]).max(axis=1)
    away[~np.isfinite(away)] = np.inf
    if away.min() < 0.01:
        mark.set("data-tip", texts[away.argmin()])


def _for_a_page(root: ElementTree.Element, name: str) -> str:
    """A drawing without its own style, sizes and metadata, its ids begun with `name`: a page may hold several."""
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{{{SVG}}}metadata", f"{{{SVG}}}style"):
                parent.remove(child)
    for element in root.iter():
        for key, value in element.attrib.items():
            if key == "id":
                element.set(key, f"{name}-{value}")
            elif key == LINK and value.startswith("#"):
                element.set(key, f"#{name}-{value[1:]}")
            elif "url(#" in value:
                element.set(key, value.replace("url(#", f"url(#{name}-"))
    del root.attrib["height"]
    root.set("style", f"max-width: {root.attrib.pop('width')}")  # not larger than it was drawn
    ElementTree.register_namespace("", SVG)
    ElementTree.register_namespace("xlink", LINK[1:].partition("}")[0])
    text = ElementTree.tostring(root, encoding="unicode")
    return re.sub(r' xmlns(:\w+)?="[^"]*"', "", text, count=2)  # HTML knows both

"""A matplotlib figure as a piece of a page: small, without ids that clash, in the page's own colours and font.

Style attributes become presentation attributes, so that the page's content policy can forbid inline styles; colours
become the page's variables, so that one drawing is readable in light and dark.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping

from markupsafe import Markup, escape

SVG = "{http://www.w3.org/2000/svg}"
HREF = "{http://www.w3.org/1999/xlink}href"
DROPPED = {f"{SVG}metadata", f"{SVG}style"}
NUMBER = re.compile(r"-?\d+\.\d+")
PAINT = ("fill", "stroke")


def inline_svg(text: str, name: str, label: str, colours: Mapping[str, str]) -> Markup:
    """matplotlib's SVG as inline SVG. `colours` maps `#rrggbb` to the page's colour; `label` is for screen readers."""
    # The text was written a moment ago by matplotlib itself, so no foreign XML is parsed here.
    root = ET.fromstring(text)
    _drop(root)
    _clean(root, name, colours)
    box = root.attrib["viewBox"]
    inner = "".join(_text(child) for child in root)
    return Markup('<svg class="plot" role="img" aria-label="{}" viewBox="{}">{}</svg>').format(
        label, box, Markup(inner)
    )


def _drop(element: ET.Element) -> None:
    for child in list(element):
        if child.tag in DROPPED:
            element.remove(child)
        else:
            _drop(child)


def _clean(root: ET.Element, name: str, colours: Mapping[str, str]) -> None:
    referred = {m for e in root.iter() for v in e.attrib.values() for m in re.findall(r"#([\w.-]+)", v)}
    for element in root.iter():
        old = dict(element.attrib)
        element.attrib.clear()
        for key, value in old.items():
            if key == "style":
                _restyle(element, value, name, colours)
            elif key == "id":
                if value in referred:
                    element.set("id", f"{name}-{value}")
            elif key == HREF:
                element.set("href", f"#{name}-{value[1:]}")
            elif key in PAINT:
                element.set(key, colours.get(value, value))
            elif key == "clip-path":
                element.set(key, value.replace("url(#", f"url(#{name}-"))
            elif not (key == "transform" and value.startswith("rotate(-0 ")):
                element.set(key, NUMBER.sub(_short, value) if key in ("d", "x", "y", "transform") else value)
        if element.text and element.tag != f"{SVG}text":
            element.text = None
        element.tail = None
        if "d" in element.attrib:
            element.set("d", " ".join(element.attrib["d"].split()))


def _short(match: re.Match[str]) -> str:
    text = f"{float(match.group()):.2f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def _restyle(element: ET.Element, style: str, name: str, colours: Mapping[str, str]) -> None:
    for part in style.split(";"):
        key, _, value = (piece.strip() for piece in part.partition(":"))
        if not key or key == "font-family" or key == "font":
            continue
        if key in PAINT:  # a colour, or a hatching by its id
            value = colours.get(value, value).replace("url(#", f"url(#{name}-")
        element.set(key, value)
    if element.tag == f"{SVG}text" and "fill" not in element.attrib:
        element.set("fill", colours["#000000"])


def _text(element: ET.Element) -> str:
    """The element without namespaces: HTML knows `svg` and what is in it by name."""
    tag = element.tag.removeprefix(SVG)
    attributes = "".join(f' {key}="{escape(value)}"' for key, value in element.attrib.items())
    inner = escape(element.text or "") + Markup("").join(Markup(_text(child)) for child in element)
    if tag in ("g", "defs") and not inner:
        return ""
    return f"<{tag}{attributes}>{inner}</{tag}>" if inner else f"<{tag}{attributes}/>"

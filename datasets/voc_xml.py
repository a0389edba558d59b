"""The annotation of one image in PASCAL VOC's XML."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from datasets.records import RecordBuilder
from util.errors import DataError
from util.inputs import Unreadable, read_bytes

_BEFORE_XML = b"\xef\xbb\xbf \t\r\n"  # a byte order mark and blank lines, which some tools write before <?xml


class _NoDoctype(ElementTree.TreeBuilder):
    """Refuses document type declarations: they could declare external entities, or ones that fill the memory."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise ValueError("document type declarations are not allowed")


def read_xml(path: Path) -> ElementTree.Element:
    """The root of an XML file.

    Raises:
        DataError: it cannot be read or is not XML.
    """
    try:
        content = read_bytes(path).lstrip(_BEFORE_XML)
        return ElementTree.fromstring(content, ElementTree.XMLParser(target=_NoDoctype()))
    except Unreadable as error:
        raise DataError(f"{path}: cannot read this annotation ({error})") from None
    except (ElementTree.ParseError, ValueError, LookupError, RecursionError) as error:
        raise DataError(f"{path}: not XML, or damaged ({error}); repair or remove it") from None


def _text(element: ElementTree.Element, tag: str, where: str) -> str:
    text = (element.findtext(tag) or "").strip()
    if not text:
        raise DataError(f"{where}: <{tag}> is missing or empty")
    return text


def _number(element: ElementTree.Element, tag: str, where: str) -> float:
    text = _text(element, tag, where)
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not abs(value) < 1e9:
        raise DataError(f"{where}: <{tag}> must be a number of pixels, not {text!r}")
    return value


def size_of(tree: ElementTree.Element, path: Path) -> tuple[int, int]:
    """(width, height) in ``<size>``.

    Raises:
        DataError: they are missing, or not positive whole numbers.
    """
    width, height = (_number(tree, f"size/{side}", str(path)) for side in ("width", "height"))
    if not (width >= 1 and height >= 1 and width.is_integer() and height.is_integer()):
        raise DataError(f"{path}: <size> must be positive whole numbers, not {width:g} and {height:g}")
    return int(width), int(height)


def add_object(
    builder: RecordBuilder, image_index: int, element: ElementTree.Element, label_of_name: dict[str, int], where: str
) -> None:
    """Add the box of an ``<object>``; see :func:`datasets.voc.read_voc`.

    Raises:
        DataError: it is malformed, or its category is unknown; the message begins with ``where``.
    """
    name = _text(element, "name", where)
    if name not in label_of_name:
        raise DataError(f"{where}: {name!r} is not one of the classes to train on: {', '.join(label_of_name)}")
    xmin, ymin, xmax, ymax = (_number(element, f"bndbox/{tag}", where) for tag in ("xmin", "ymin", "xmax", "ymax"))
    difficult = element.findtext("difficult", default="0").strip() or "0"
    if difficult not in ("0", "1"):
        raise DataError(f"{where}: <difficult> must be 0 or 1, not {difficult!r}")
    builder.add_box(
        image_index,
        (xmin - 1, ymin - 1, xmax, ymax),
        label_of_name[name],
        degenerate=xmax <= xmin or ymax <= ymin,
        difficult=difficult == "1",
    )


def object_names(tree: ElementTree.Element, path: Path) -> set[str]:
    """The names of the objects in one annotation."""
    objects = enumerate(tree.findall("object"), start=1)
    return {_text(element, "name", f"{path}: object {number}") for number, element in objects}


def categories_named(names: Sequence[str]) -> list[dict]:
    """Categories with these names, in this order."""
    return [{"label": label, "id": label + 1, "name": name} for label, name in enumerate(names)]

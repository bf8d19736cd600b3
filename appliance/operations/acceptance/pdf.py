"""A plain text document as PDF 1.4 (ISO 32000-1), for paper files: headings, wrapped text, evidence in a fixed width.

It uses the fonts that every reader has (Helvetica, Courier; annex D: WinAnsiEncoding) and nothing else: the zone needs
no library for it. The same lines give the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

Style = Literal["title", "heading", "text", "evidence"]

PAGE_WIDTH, PAGE_HEIGHT, MARGIN = 595, 842, 56  # A4, points
# Helvetica's advance widths for the characters 32 to 126, thousandths of the size (Adobe's font metrics)
_HELVETICA = (
    278, 278, 355, 556, 556, 889, 667, 191, 333, 333, 389, 584, 278, 333, 278, 278, 556, 556, 556, 556, 556, 556, 556,
    556, 556, 556, 278, 278, 584, 584, 584, 556, 1015, 667, 667, 722, 722, 667, 611, 778, 722, 278, 500, 667, 556, 833,
    722, 778, 667, 778, 722, 667, 611, 722, 667, 944, 667, 667, 611, 278, 278, 278, 469, 556, 333, 556, 556, 500, 556,
    556, 278, 556, 556, 222, 222, 500, 222, 833, 556, 556, 556, 556, 333, 500, 278, 556, 500, 722, 500, 500, 500, 334,
    260, 334, 584,
)  # fmt: skip


@dataclass(frozen=True)
class _Look:
    font: str
    size: float
    above: float  # points, before a paragraph
    indent: float


_LOOKS: dict[Style, _Look] = {
    "title": _Look("F2", 18, 0, 0),
    "heading": _Look("F2", 11, 14, 0),
    "text": _Look("F1", 10, 2, 0),
    "evidence": _Look("F3", 8, 1, 12),
}


@dataclass(frozen=True)
class Paragraph:
    """One paragraph; it is wrapped to the page's width."""

    style: Style
    text: str


def document(paragraphs: Iterable[Paragraph], *, footer: str) -> bytes:
    """Set paragraphs on pages.

    Args:
        paragraphs: in their order.
        footer: stands on every page, before its number.
    """
    pages = list(_pages(paragraphs))
    fonts = ("Helvetica", "Helvetica-Bold", "Courier")
    first_page = 3 + len(fonts)
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Count %d /Kids [%s] >>"
        % (len(pages), b" ".join(b"%d 0 R" % (first_page + 2 * n) for n in range(len(pages)))),
        *(
            b"<< /Type /Font /Subtype /Type1 /BaseFont /%s /Encoding /WinAnsiEncoding >>" % name.encode()
            for name in fonts
        ),
    ]
    resources = b" ".join(b"/F%d %d 0 R" % (n + 1, n + 3) for n in range(len(fonts)))
    for number, lines in enumerate(pages):
        lines.append(_line(_LOOKS["evidence"], MARGIN, MARGIN / 2, f"{footer} - {number + 1} of {len(pages)}"))
        content = b"\n".join(lines)
        objects.append(
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 %d %d] /Resources << /Font << %s >> >> /Contents %d 0 R >>"
            % (PAGE_WIDTH, PAGE_HEIGHT, resources, first_page + 2 * number + 1)
        )
        objects.append(b"<< /Length %d >>\nstream\n%s\nendstream" % (len(content), content))
    return _file(objects)


def _pages(paragraphs: Iterable[Paragraph]) -> Iterator[list[bytes]]:
    page: list[bytes] = []
    y = float(PAGE_HEIGHT - MARGIN)
    for paragraph in paragraphs:
        look = _LOOKS[paragraph.style]
        y -= look.above
        for line in _wrapped(paragraph.text, look):
            y -= look.size * 1.3
            if y < MARGIN:
                yield page
                page, y = [], PAGE_HEIGHT - MARGIN - look.size * 1.3
            page.append(_line(look, MARGIN + look.indent, y, line))
    yield page


def _line(look: _Look, x: float, y: float, text: str) -> bytes:
    written = text.encode("cp1252", "replace").replace(b"\\", b"\\\\").replace(b"(", b"\\(").replace(b")", b"\\)")
    return b"BT /%s %g Tf %g %g Td (%s) Tj ET" % (look.font.encode(), look.size, x, round(y, 2), written)


def _wrapped(text: str, look: _Look) -> Iterator[str]:
    """Lines that fit; a word longer than a line is cut."""
    room = PAGE_WIDTH - 2 * MARGIN - look.indent
    line = ""
    for word in text.split():
        while _width(word, look) > room:
            head = next(n for n in range(len(word), 0, -1) if _width(word[:n], look) <= room)
            if line:
                yield line
                line = ""
            yield word[:head]
            word = word[head:]  # noqa: PLW2901 (what is left of it)
        joined = f"{line} {word}" if line else word
        if _width(joined, look) > room:
            yield line
            line = word
        else:
            line = joined
    if line:
        yield line


def _width(text: str, look: _Look) -> float:
    if look.font == "F3":
        return len(text) * 0.6 * look.size
    widths = (_HELVETICA[ord(c) - 32] if " " <= c <= "~" else 611 for c in text)
    return sum(widths) * look.size / (1000 if look.font == "F1" else 930)  # bold is a little wider


def _file(objects: Sequence[bytes]) -> bytes:
    """Objects, cross-reference table and trailer (7.5)."""
    data = bytearray(b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n")
    places = []
    for number, each in enumerate(objects, 1):
        places.append(len(data))
        data += b"%d 0 obj\n%s\nendobj\n" % (number, each)
    start = len(data)
    data += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    data += b"".join(b"%010d 00000 n \n" % place for place in places)
    data += b"trailer\n<< /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, start)
    return bytes(data)

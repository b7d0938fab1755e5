"""The text of a document that somebody has sent: plain text, Markdown, PDF or HTML.

What is read comes from strangers. Nothing in it is executed, fetched or followed, and reading it
ends: by its pages, its text, what it unpacks to, and the time that it takes.
"""

from __future__ import annotations

import codecs
import re
import time
from collections.abc import Callable
from io import BytesIO
from typing import Any

from ..errors import BadRequest, RequestError, TooLarge

FIELD = "document"
#: Seconds that a page or a PDF may take, and bytes that a PDF's streams may unpack to.
SECONDS, UNPACKED = 10.0, 20_000_000

#: What says by its first bytes how it is encoded.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
#: The encodings that an HTML page may name; Python knows others that are none for pages.
_PAGES = re.compile(
    r"iso-8859-\d+|windows-\d+|cp\d+|koi8-[ru]|shift[_-]jis|euc-(jp|kr)|gb(k|2312|18030)|big5",
    re.IGNORECASE,
)
#: Characters that are not printable, and yet in many a text.
_BLANKS = str.maketrans(dict.fromkeys("\n\r\t\f\xa0\xad"))
#: Parts of a page that are not for reading; those that stand alone, on lines or in paragraphs.
_HIDDEN = {"script", "style", "template", "noscript", "svg", "math", "iframe", "object"}
_LINES = {"dd", "dt", "li", "option", "tr"}
_BLOCKS = _LINES | {
    "address",
    "article",
    "aside",
    "blockquote",
    "caption",
    "div",
    "dl",
    "fieldset",
    "figcaption",
    "figure",
    "footer",
}
_BLOCKS |= {
    "form",
    "h1",
    "h2",
    "h3",
    "h4",
    "h5",
    "h6",
    "header",
    "hr",
    "main",
    "nav",
    "ol",
    "p",
    "pre",
    "section",
    "table",
    "title",
    "ul",
}
_CELLS = {"td", "th"}


def text_of(name: str, data: bytes, most: int, pages: int) -> str:
    """The text of a file called `name`, of at most `most` characters and, of a PDF, `pages` pages.

    Line ends are `\\n`; there is no NUL and no half of a surrogate pair in it. Raises TooLarge,
    or BadRequest for whatever has no text that can be read; both name the field `document`.
    """
    read = _KINDS.get(name.rpartition(".")[2].lower() if "." in name else "")
    if read is None:
        raise _bad("A document is a .txt, .md, .pdf, .html or .htm file.")
    if not data:
        raise _bad("The document is empty.")
    text = read(data, most, pages)
    text = text.replace("\r\n", "\n").replace("\r", "\n").strip()
    if not text:
        raise _bad("The document has no text.")
    _check(len(text), most)
    return text


def _plain(data: bytes, most: int, pages: int) -> str:
    _check(len(data) // 4 - 1, most)  # no encoding has more bytes for a character
    text = _decoded(data)
    if "\0" in text:
        raise _bad("The document has NUL characters, so it is no text.")
    return text


def _decoded(data: bytes, declared: str | None = None) -> str:
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            try:
                return data.removeprefix(mark).decode(encoding)
            except UnicodeDecodeError:
                raise _bad(f"The document is not the {encoding[:6].upper()} it says.") from None
    for encoding in ("utf-8", declared or "utf-8", "cp1252"):
        try:
            text = data.decode(encoding)
        except (UnicodeDecodeError, LookupError):
            continue
        # Nearly any bytes are cp1252, pictures and programs, too.
        if encoding == "utf-8" or text.translate(_BLANKS).isprintable():
            return text
    raise _bad("The document is not text in UTF-8, or in UTF-16 with a byte order mark.")


def _html(data: bytes, most: int, pages: int) -> str:
    try:
        from bs4 import BeautifulSoup
        from bs4.dammit import EncodingDetector
    except ImportError:
        raise _bad("This service reads no HTML.") from None
    # Where browsers look: it searches with an expression that is slow where nothing is found.
    declared = EncodingDetector.find_declared_encoding(data[:4096], is_html=True)
    known = declared if declared and _PAGES.fullmatch(declared) else None
    page = _decoded(data, known)
    if "\0" in page:
        raise _bad("The document has NUL characters, so it is no text.")
    hurry = _deadline("page")

    class Page(BeautifulSoup):
        """Of some pages, Python's parser reads the rest again at every bracket."""

        def handle_starttag(self, *args: Any, **kwargs: Any) -> Any:
            hurry()
            return super().handle_starttag(*args, **kwargs)

        def handle_data(self, data: str) -> None:
            hurry()
            super().handle_data(data)

    try:
        return _laid_out(Page(page, "html.parser"), most)
    except RequestError:
        raise
    except Exception as error:  # whatever a parser may trip over
        raise _bad("The HTML cannot be read.") from error


def _laid_out(page: Any, most: int) -> str:
    """A page's text: paragraphs with a line between them, white space as one space.

    Without recursion, and in one pass: pages can be very deep, and very wide.
    """
    out: list[str] = []
    found = gap = pre = 0
    left: list[Any] = [page]  # what is still to be read, the next last; a name ends its element
    while left:
        one = left.pop()
        name = one if type(one) is str else getattr(one, "name", None)
        if name in _HIDDEN:
            continue
        if name is None:
            if type(one).__name__ != "NavigableString":
                continue  # a comment, a declaration
            text = one if pre else re.sub(r"\s+", " ", one)
            if not pre and (gap or not out):
                text = text.lstrip(" ")
            if text:
                text = "\n" * (gap if out else 0) + text
                out.append(text)
                found += len(text)
                _check(found, most)
                gap = 0
            continue
        if name in _BLOCKS:
            gap = max(gap, 1 if name in _LINES else 2)
        if type(one) is str:
            pre -= name == "pre"
            if name in _CELLS and not gap:
                out.append("\t")
        elif name == "br":
            gap = min(gap + 1, 2)
        else:
            pre += name == "pre"
            left.append(name)
            left.extend(reversed(one.contents))
    return "\n".join(line.rstrip() for line in "".join(out).split("\n"))


def _pdf(data: bytes, most: int, pages: int) -> str:
    try:
        from pypdf import PasswordType, PdfReader, apply_configuration
        from pypdf.errors import DependencyError, LimitReachedError
    except ImportError:
        raise _bad("This service reads no PDF.") from None
    if b"%PDF-" not in data[:1024]:
        raise _bad("The file is no PDF.")
    try:
        with apply_configuration(
            zlib_maximum_output_length=UNPACKED,
            lzw_maximum_output_length=UNPACKED,
            run_length_maximum_output_length=UNPACKED,
            brotli_maximum_output_length=UNPACKED,
            array_based_stream_maximum_output_length=UNPACKED,
        ):
            reader = PdfReader(BytesIO(data))
            # Many are encrypted so that they may not be printed, with no password for reading.
            if reader.is_encrypted and reader.decrypt("") == PasswordType.NOT_DECRYPTED:
                raise _bad("The PDF is encrypted.")
            if len(reader.pages) > pages:
                raise TooLarge(f"The PDF has more than {pages} pages.", field=FIELD)
            text = "\n\n".join(_of_pages(reader.pages, most))
    except RequestError:
        raise
    except DependencyError:  # for the encryption
        raise _bad("The PDF is encrypted.") from None
    except LimitReachedError as error:
        raise TooLarge("The PDF unpacks to more than can be read.", field=FIELD) from error
    except Exception as error:  # pypdf raises nearly anything for a file that is not whole
        raise _bad("The PDF cannot be read: it is damaged.") from error
    # Fonts that are described badly give characters that are none.
    text = (
        text.replace("\0", "").encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    )
    if not text.strip():
        raise _bad("The PDF has no text: its pages may be pictures, such as scans.")
    return text


def _of_pages(pages: Any, most: int) -> list[str]:
    """The text of each page. Raises TooLarge once it is too much, or takes too long."""
    hurry = _deadline("PDF")
    found = 0

    def count(text: str, *_: Any) -> None:
        nonlocal found
        found += len(text)
        _check(found, most)

    texts = []
    for page in pages:
        hurry()
        texts.append(page.extract_text(visitor_operand_before=hurry, visitor_text=count).strip())
    return texts


def _deadline(kind: str) -> Callable[..., None]:
    """To be called now and then: it raises TooLarge once the time is over."""
    until = time.monotonic() + SECONDS

    def hurry(*_: Any) -> None:
        if time.monotonic() > until:
            raise TooLarge(f"The {kind} takes too long to read.", field=FIELD)

    return hurry


def _check(characters: int, most: int) -> None:
    if characters > most:
        raise TooLarge(f"The document has more than {most} characters.", field=FIELD)


def _bad(detail: str) -> BadRequest:
    return BadRequest(detail, field=FIELD)


_KINDS: dict[str, Callable[[bytes, int, int], str]] = {
    "txt": _plain,
    "md": _plain,
    "pdf": _pdf,
    "html": _html,
    "htm": _html,
}

"""Extract the text of an uploaded document: plain text, Markdown, PDF or HTML.

Uploads are untrusted. Nothing in them is executed, fetched or followed. Limits bound the pages, the
text, the unpacked size and the time.
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
#: Seconds that parsing may take, and bytes to which the streams of a PDF may unpack.
SECONDS, UNPACKED = 10.0, 20_000_000

#: Byte order marks and their encodings.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
#: Encodings that an HTML page may declare. Python knows others that are not meant for pages.
_PAGE_ENCODINGS = re.compile(
    r"iso-8859-\d+|windows-\d+|cp\d+|koi8-[ru]|shift[_-]jis|euc-(jp|kr)|gb(k|2312|18030)|big5",
    re.IGNORECASE,
)
#: Characters that are common in text although `str.isprintable` rejects them.
_BLANKS = str.maketrans(dict.fromkeys("\n\r\t\f\xa0\xad"))
#: Elements whose content is not shown, that stand on a line, and that stand in a paragraph.
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


def text_of(name: str, data: bytes, max_length: int, max_pages: int) -> str:
    """Return the text of a file called `name`.

    Lines end with `\\n`. The text contains no NUL characters and no unpaired surrogates. Raises
    TooLarge for more than `max_length` characters or `max_pages` pages of a PDF, and BadRequest for
    a file without readable text. Both name the field `document`.
    """
    read = _KINDS.get(name.rpartition(".")[2].lower() if "." in name else "")
    if read is None:
        raise _bad("The document must be a .txt, .md, .pdf, .html or .htm file.")
    if not data:
        raise _bad("The document is empty.")
    text = read(data, max_length, max_pages)
    text = text.replace("\r\n", "\n").replace("\r", "\n").strip()
    if not text:
        raise _bad("The document has no text.")
    _check_length(len(text), max_length)
    return text


def _plain(data: bytes, max_length: int, max_pages: int) -> str:
    _check_length(len(data) // 4 - 1, max_length)  # a character has at most four bytes
    text = _decoded(data)
    if "\0" in text:
        raise _bad("The document contains NUL characters, so it is not text.")
    return text


def _decoded(data: bytes, declared: str | None = None) -> str:
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            try:
                return data.removeprefix(mark).decode(encoding)
            except UnicodeDecodeError:
                raise _bad(f"The document is not valid {encoding[:6].upper()}.") from None
    for encoding in ("utf-8", declared or "utf-8", "cp1252"):
        try:
            text = data.decode(encoding)
        except (UnicodeDecodeError, LookupError):
            continue
        # Nearly all bytes can be decoded as cp1252, including those of images and programs.
        if encoding == "utf-8" or text.translate(_BLANKS).isprintable():
            return text
    raise _bad("The document is not text in UTF-8, or in UTF-16 with a byte order mark.")


def _html(data: bytes, max_length: int, max_pages: int) -> str:
    try:
        from bs4 import BeautifulSoup
        from bs4.dammit import EncodingDetector
    except ImportError:
        raise _bad("This service cannot read HTML documents.") from None
    # Browsers, too, look only at the beginning. The search is slow in a page without a declaration.
    declared = EncodingDetector.find_declared_encoding(data[:4096], is_html=True)
    known = declared if declared and _PAGE_ENCODINGS.fullmatch(declared) else None
    page = _decoded(data, known)
    if "\0" in page:
        raise _bad("The document contains NUL characters, so it is not text.")
    check_time = _deadline("page")

    class Page(BeautifulSoup):
        """Checks the deadline while parsing: some pages take Python's parser quadratic time."""

        def handle_starttag(self, *args: Any, **kwargs: Any) -> Any:
            check_time()
            return super().handle_starttag(*args, **kwargs)

        def handle_data(self, data: str) -> None:
            check_time()
            super().handle_data(data)

    try:
        return _page_text(Page(page, "html.parser"), max_length)
    except RequestError:
        raise
    except Exception as error:  # the parser may raise anything
        raise _bad("The HTML cannot be read.") from error


def _page_text(page: Any, max_length: int) -> str:
    """Return a page's text, with an empty line between paragraphs and runs of white space as one.

    It works in one pass and without recursion, because pages can be very deep and very wide.
    """
    out: list[str] = []
    length = gap = pre = 0
    stack: list[Any] = [page]  # nodes to visit; a plain string marks the end of that element
    while stack:
        node = stack.pop()
        name = node if type(node) is str else getattr(node, "name", None)
        if name in _HIDDEN:
            continue
        if name is None:
            if type(node).__name__ != "NavigableString":
                continue  # a comment or a declaration
            text = node if pre else re.sub(r"\s+", " ", node)
            if not pre and (gap or not out):
                text = text.lstrip(" ")
            if text:
                text = "\n" * (gap if out else 0) + text
                out.append(text)
                length += len(text)
                _check_length(length, max_length)
                gap = 0
            continue
        if name in _BLOCKS:
            gap = max(gap, 1 if name in _LINES else 2)
        if type(node) is str:
            pre -= name == "pre"
            if name in _CELLS and not gap:
                out.append("\t")
        elif name == "br":
            gap = min(gap + 1, 2)
        else:
            pre += name == "pre"
            stack.append(name)
            stack.extend(reversed(node.contents))
    return "\n".join(line.rstrip() for line in "".join(out).split("\n"))


def _pdf(data: bytes, max_length: int, max_pages: int) -> str:
    try:
        from pypdf import PasswordType, PdfReader, apply_configuration
        from pypdf.errors import DependencyError, LimitReachedError
    except ImportError:
        raise _bad("This service cannot read PDF documents.") from None
    if b"%PDF-" not in data[:1024]:
        raise _bad("The file is not a PDF.")
    try:
        with apply_configuration(
            zlib_maximum_output_length=UNPACKED,
            lzw_maximum_output_length=UNPACKED,
            run_length_maximum_output_length=UNPACKED,
            brotli_maximum_output_length=UNPACKED,
            array_based_stream_maximum_output_length=UNPACKED,
        ):
            reader = PdfReader(BytesIO(data))
            # Many PDFs are encrypted only to forbid printing, and open with an empty password.
            if reader.is_encrypted and reader.decrypt("") == PasswordType.NOT_DECRYPTED:
                raise _bad("The PDF is encrypted.")
            if len(reader.pages) > max_pages:
                raise TooLarge(f"The PDF has more than {max_pages} pages.", field=FIELD)
            text = "\n\n".join(_pdf_texts(reader.pages, max_length))
    except RequestError:
        raise
    except DependencyError:  # the encryption needs a package that is not installed
        raise _bad("The PDF is encrypted.") from None
    except LimitReachedError as error:
        raise TooLarge("The PDF is too large when unpacked.", field=FIELD) from error
    except Exception as error:  # pypdf raises many types of exceptions for damaged files
        raise _bad("The PDF cannot be read: it is damaged.") from error
    # Badly described fonts produce invalid characters.
    text = (
        text.replace("\0", "").encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    )
    if not text.strip():
        raise _bad("The PDF has no text: its pages may be pictures, such as scans.")
    return text


def _pdf_texts(pages: Any, max_length: int) -> list[str]:
    """Return the text of each page. Raises TooLarge for too much text, or after the deadline."""
    check_time = _deadline("PDF")
    length = 0

    def count(text: str, *_: Any) -> None:
        nonlocal length
        length += len(text)
        _check_length(length, max_length)

    texts = []
    for page in pages:
        check_time()
        text = page.extract_text(visitor_operand_before=check_time, visitor_text=count)
        texts.append(text.strip())
    return texts


def _deadline(kind: str) -> Callable[..., None]:
    """Return a function that raises TooLarge when SECONDS have passed."""
    until = time.monotonic() + SECONDS

    def check_time(*_: Any) -> None:
        if time.monotonic() > until:
            raise TooLarge(f"The {kind} takes too long to read.", field=FIELD)

    return check_time


def _check_length(length: int, max_length: int) -> None:
    if length > max_length:
        raise TooLarge(f"The document has more than {max_length} characters.", field=FIELD)


def _bad(detail: str) -> BadRequest:
    return BadRequest(detail, field=FIELD)


_KINDS: dict[str, Callable[[bytes, int, int], str]] = {
    "txt": _plain,
    "md": _plain,
    "pdf": _pdf,
    "html": _html,
    "htm": _html,
}

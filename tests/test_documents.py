"""Documents that people send: their text, and a clear sentence for those that have none."""

from __future__ import annotations

import sys
import time
import zlib
from io import BytesIO
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pypdf import PdfWriter
from pypdf.generic import (
    ArrayObject,
    DecodedStreamObject,
    DictionaryObject,
    FloatObject,
    NameObject,
    StreamObject,
)

from flask_stream.errors import BadRequest, RequestError, TooLarge
from flask_stream.web import document_text as documents
from flask_stream.web.document_text import text_of

MOST, PAGES = 10_000, 5


def read(name: str, data: bytes, most: int = MOST, pages: int = PAGES) -> str:
    return text_of(name, data, most, pages)


def refused(name: str, data: bytes, most: int = MOST, pages: int = PAGES) -> RequestError:
    with pytest.raises((BadRequest, TooLarge)) as error:
        text_of(name, data, most, pages)
    assert error.value.field == "document"
    return error.value


def name(text: str) -> NameObject:
    return NameObject(text)


def adopt(writer: PdfWriter, content: bytes, resources: dict[str, Any] | None = None) -> None:
    """A page that draws what a content stream says, with the font F1 and other resources."""
    page = writer.add_blank_page(600, 800)
    stream = DecodedStreamObject()
    stream.set_data(content)
    font = {name("/Type"): name("/Font"), name("/Subtype"): name("/Type1")}
    font[name("/BaseFont")] = name("/Helvetica")
    fonts = DictionaryObject({name("/F1"): DictionaryObject(font)})
    held = DictionaryObject({name("/Font"): fonts})
    for key, value in (resources or {}).items():
        held[name(key)] = value
    page[name("/Resources")] = held
    page[name("/Contents")] = writer._add_object(stream)


def lines(*said: str) -> bytes:
    drawn = "".join(f"({line}) Tj T* " for line in said)
    return f"BT /F1 12 Tf 14 TL 50 700 Td {drawn} ET".encode("latin-1")


def written(writer: PdfWriter) -> bytes:
    file = BytesIO()
    writer.write(file)
    return file.getvalue()


def pdf(*pages: bytes) -> bytes:
    writer = PdfWriter()
    for page in pages:
        adopt(writer, page)
    return written(writer)


# Plain text and Markdown


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), min_size=1))
def test_text_is_read_as_it_is(text: str) -> None:
    if not text.strip():
        return
    text = text.lstrip("\ufeff") or "x"
    for encoded in (text.encode(), b"\xef\xbb\xbf" + text.encode()):
        if text.strip():
            assert read("a.txt", encoded) == text.strip()
    for mark, encoding in ((b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be")):
        if text.strip():
            assert read("a.md", mark + text.encode(encoding)) == text.strip()


def test_line_ends_are_one_character() -> None:
    assert read("A.TXT", b"one\r\ntwo\rthree\n") == "one\ntwo\nthree"


def test_old_texts_of_windows_are_read() -> None:
    assert read("a.txt", "„Größe“: 5 €\n\tdort".encode("cp1252")) == "„Größe“: 5 €\n\tdort"


@pytest.mark.parametrize(
    "data",
    [
        bytes(range(1, 256)),
        b"\x89PNG\r\n\x1a\n" + zlib.compress(b"a picture" * 9),
        b"\x7fELF\x02\x01\x01\xff",
        b"caf\xe9 \x1b[0m",
    ],
)
def test_what_is_no_text(data: bytes) -> None:
    assert "not text in UTF-8" in refused("a.txt", data).detail


def test_half_an_encoding() -> None:
    assert refused("a.txt", b"\xff\xfea").detail == "The document is not valid UTF-16."
    assert refused("a.txt", b"\xef\xbb\xbf\xff").detail == "The document is not valid UTF-8."


@pytest.mark.parametrize("kind", ["txt", "md", "html"])
def test_nuls_are_no_text(kind: str) -> None:
    assert "NUL" in refused(f"a.{kind}", b"one\0two").detail
    assert "NUL" in refused(f"a.{kind}", b"\xff\xfe" + "one\0".encode("utf-16-le")).detail


@pytest.mark.parametrize("kind", ["txt", "md", "pdf", "html", "htm"])
def test_an_empty_document(kind: str) -> None:
    assert refused(f"a.{kind}", b"").detail == "The document is empty."


def test_only_white_space() -> None:
    assert refused("a.txt", b" \n\t ").detail == "The document has no text."
    assert refused("a.html", b"<p> &nbsp; </p><script>x</script>").detail.endswith("has no text.")


@pytest.mark.parametrize("called", ["a.docx", "a.pdf.exe", "pdf", "", "a.", "txt.", ".zip"])
def test_other_kinds(called: str) -> None:
    assert refused(called, b"text").detail == (
        "The document must be a .txt, .md, .pdf, .html or .htm file."
    )


def test_too_long() -> None:
    assert read("a.txt", b"x" * MOST) == "x" * MOST
    assert read("a.txt", ("🦀" * MOST).encode()) == "🦀" * MOST
    for data in (b"x" * (MOST + 1), b"x" * (MOST * 9)):
        error = refused("a.txt", data)
        assert (error.status, error.detail) == (413, "The document has more than 10000 characters.")
    assert refused("a.html", b"<p>" + b"x" * (MOST + 1)).status == 413


# HTML


def test_a_page_is_its_text_in_paragraphs() -> None:
    page = b"""<!doctype html><html><head><title>The  river</title>
    <style>p { color: red }</style><script>steal("<p>no</p>")</script></head>
    <body><h1>On the
    river</h1><p>It <b>ru</b>ns &amp; runs,<br>day   and night.</p><!-- hidden -->
    <ul><li>One</li><li>Two</li></ul><table><tr><td>a</td><td>b</td></tr></table>
    <pre>kept
  as it is</pre><noscript>no</noscript><template>no</template></body></html>"""
    text = read("a.HTML", page)
    assert text == (
        "The river\n\nOn the river\n\nIt runs & runs,\nday and night.\n\nOne\nTwo\n\na\tb\n\n"
        "kept\n  as it is"
    )


def test_a_page_says_its_encoding() -> None:
    told = '<meta charset="windows-1251"><p>Привет, мир</p>'
    assert read("a.htm", told.encode("cp1251")) == "Привет, мир"
    assert read("a.htm", told.encode()) == "Привет, мир"  # it is not what it says
    japanese = '<meta charset="Shift_JIS"><p>日本語</p>'
    assert read("a.htm", japanese.encode("shift_jis")) == "日本語"
    odd = b'<meta charset="unicode_escape"><p>caf\xe9 \\x41</p>'
    assert read("a.htm", odd) == "café \\x41"


def outcome(name: str, data: bytes) -> str:
    """The text, or the sentence that says why there is none; nothing else may be raised."""
    try:
        return read(name, data)
    except RequestError as error:
        return f"{error.field}: {error.detail}"


UNITS = ["<div>", "<p>x", "<b>", "</p>", "<", "<!", "<!--", "&#", "&", "<p a='", "<p a=", "<a\t"]
UNITS += ["<?", "<![", "<!a ", "</", "<script>", "<svg><title>", "<pre>", "<textarea>", "x "]


@pytest.mark.parametrize("unit", UNITS)
def test_a_page_of_one_thing_many_times_comes_to_an_end(
    unit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, "SECONDS", 1.0)
    began = time.monotonic()
    assert outcome("a.html", (unit * 20_000 + " text").encode())
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("start", ["<p ", "<p a=", "<p a ", "<!-- ", "</p ", "&#1", "<script>"])
@pytest.mark.parametrize("rest", [" ", "a", "/", "=", "-", '"', "a ", "<"])
def test_one_thing_without_an_end_comes_to_an_end(start: str, rest: str) -> None:
    began = time.monotonic()
    assert outcome("a.html", (start + rest * 20_000).encode())
    assert time.monotonic() - began < 10


def test_an_encoding_is_looked_for_where_browsers_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "SECONDS", 1.0)
    began = time.monotonic()
    assert outcome("a.html", b"<meta" * 2_000_000)
    assert time.monotonic() - began < 10


@given(st.binary(max_size=300))
def test_no_bytes_raise_anything_else(data: bytes) -> None:
    for kind in ("txt", "html", "pdf"):
        assert outcome(f"a.{kind}", data)
        assert outcome(f"a.{kind}", b"%PDF-1.7\n" + data)


# PDF


def test_a_pdf_is_its_pages() -> None:
    text = read("a.pdf", pdf(lines("The first page", "has two lines."), lines("The second.")))
    assert text == "The first page\nhas two lines.\n\nThe second."


def test_a_scan_has_no_text() -> None:
    assert "no text" in refused("a.pdf", pdf(b"", b"0 0 100 100 re f")).detail


def test_too_many_pages() -> None:
    page = lines("Here.")
    assert read("a.pdf", pdf(*[page] * PAGES)).count("Here.") == PAGES
    error = refused("a.pdf", pdf(*[page] * (PAGES + 1)))
    assert (error.status, error.detail) == (413, "The PDF has more than 5 pages.")


def test_too_much_text_ends_the_reading() -> None:
    whole = pdf(*[lines(*["word " * 20] * 30)] * PAGES)
    assert refused("a.pdf", whole, most=2000).status == 413


@pytest.mark.parametrize("algorithm", ["RC4-128", "AES-256"])
def test_an_encrypted_pdf(algorithm: str) -> None:
    writer = PdfWriter()
    adopt(writer, lines("Secret."))
    writer.encrypt("open sesame", algorithm=algorithm)
    assert refused("a.pdf", written(writer)).detail == "The PDF is encrypted."


def test_a_pdf_that_anybody_may_read_is_read() -> None:
    writer = PdfWriter()
    adopt(writer, lines("Not to be printed."))
    writer.encrypt("", "owner", algorithm="AES-256")
    assert read("a.pdf", written(writer)) == "Not to be printed."


def test_no_pdf_at_all() -> None:
    assert refused("a.pdf", b"Hello").detail == "The file is not a PDF."
    assert "damaged" in refused("a.pdf", b"%PDF-1.7\nHello").detail


@pytest.mark.parametrize("kept", [0.3, 0.6])
def test_half_a_pdf(kept: float) -> None:
    whole = pdf(*[lines(f"Page {n}.") for n in range(4)])
    error = refused("a.pdf", whole[: int(len(whole) * kept)])
    assert isinstance(error, BadRequest)


def packed(writer: PdfWriter, raw: bytes) -> None:
    """A page whose content is packed as it is given."""
    adopt(writer, b"")
    stream = StreamObject()
    stream._data = raw
    stream[name("/Filter")] = name("/FlateDecode")
    writer.pages[-1][name("/Contents")] = writer._add_object(stream)


def test_a_page_that_unpacks_to_very_much() -> None:
    writer = PdfWriter()
    packed(writer, zlib.compress(b" " * (documents.UNPACKED + 1), 9))
    data = written(writer)
    assert len(data) < 50_000
    error = refused("a.pdf", data)
    assert (error.status, error.detail) == (413, "The PDF is too large when unpacked.")


def form(writer: PdfWriter, content: bytes, inner: Any = None) -> Any:
    stream = DecodedStreamObject()
    stream.set_data(content)
    stream[name("/Type")] = name("/XObject")
    stream[name("/Subtype")] = name("/Form")
    stream[name("/BBox")] = ArrayObject([FloatObject(n) for n in (0, 0, 600, 800)])
    font = {name("/Type"): name("/Font"), name("/Subtype"): name("/Type1")}
    font[name("/BaseFont")] = name("/Helvetica")
    held = DictionaryObject(
        {name("/Font"): DictionaryObject({name("/F1"): DictionaryObject(font)})}
    )
    if inner is not None:
        held[name("/XObject")] = DictionaryObject({name("/X"): inner})
    stream[name("/Resources")] = held
    return writer._add_object(stream)


def nested() -> bytes:
    """Ten forms, each of which draws the next ten times: a billion lines of text."""
    writer = PdfWriter()
    inner = form(writer, lines("word"))
    for _ in range(9):
        inner = form(writer, b"/X Do " * 10, inner)
    xobjects = DictionaryObject({name("/X"): inner})
    adopt(writer, b"/X Do " * 10, {"/XObject": xobjects})
    return written(writer)


def test_forms_within_forms_come_to_an_end() -> None:
    began = time.monotonic()
    assert refused("a.pdf", nested(), most=5000).status == 413
    assert time.monotonic() - began < documents.SECONDS + 10


def test_a_pdf_has_only_so_much_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "SECONDS", 0.0)
    error = refused("a.pdf", pdf(lines("Slow.")))
    assert (error.status, error.detail) == (413, "The PDF takes too long to read.")


@pytest.mark.parametrize(("module", "kind"), [("pypdf", "pdf"), ("bs4", "html")])
def test_without_the_extra(monkeypatch: pytest.MonkeyPatch, module: str, kind: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    assert (
        refused(f"a.{kind}", b"text").detail
        == f"This service cannot read {kind.upper()} documents."
    )
    assert read("a.md", b"text") == "text"

"""The test client's own tests: the parser against the WHATWG's text, the client against cuts."""

import contextlib
import itertools
import socket
import struct
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.sse import Parser, ServerSentEvent, Stream, request


def parse(*pieces: bytes) -> list[ServerSentEvent]:
    parser = Parser()
    return [event for piece in pieces for event in parser.feed(piece)]


class TestTheSpecificationsOwnExamples:
    """https://html.spec.whatwg.org/multipage/server-sent-events.html, 9.2.1 and 9.2.6"""

    def test_three_messages(self) -> None:
        stream = (
            b"data: This is the first message.\n\n"
            b"data: This is the second message, it\ndata: has two lines.\n\n"
            b"data: This is the third message.\n\n"
        )
        assert [event.data for event in parse(stream)] == [
            "This is the first message.",
            "This is the second message, it\nhas two lines.",
            "This is the third message.",
        ]

    def test_named_events(self) -> None:
        stream = b"event: add\ndata: 73857293\n\nevent: remove\ndata: 2153\n\n"
        assert parse(stream) == [
            ServerSentEvent("add", "73857293"),
            ServerSentEvent("remove", "2153"),
        ]

    def test_three_lines_of_one_event(self) -> None:
        [event] = parse(b"data: YHOO\ndata: +2\ndata: 10\n\n")
        assert event.data == "YHOO\n+2\n10"

    def test_comment_id_and_empty_id(self) -> None:
        stream = (
            b": test stream\n\n"
            b"data: first event\nid: 1\n\n"
            b"data:second event\nid\n\n"
            b"data:  third event\n\n"
        )
        assert parse(stream) == [
            ServerSentEvent("message", "first event", "1"),
            ServerSentEvent("message", "second event", ""),
            ServerSentEvent("message", " third event", ""),
        ]

    def test_empty_data_and_an_unfinished_block(self) -> None:
        assert [event.data for event in parse(b"data\n\ndata\ndata\n\ndata:")] == ["", "\n"]

    def test_one_space_after_the_colon_is_ignored(self) -> None:
        assert parse(b"data:test\n\n") == parse(b"data: test\n\n")


class TestFields:
    def test_an_id_outlives_its_event(self) -> None:
        assert [event.id for event in parse(b"id: 7\ndata: a\n\ndata: b\n\n")] == ["7", "7"]

    def test_an_id_without_data_is_remembered_and_dispatches_nothing(self) -> None:
        parser = Parser()
        assert parser.feed(b"id: 7\n\n") == []
        assert parser.last_event_id == "7"

    def test_an_id_counts_only_at_the_end_of_its_block(self) -> None:
        parser = Parser()
        parser.feed(b"id: 7\n")
        assert parser.last_event_id == ""

    def test_an_id_with_nul_is_ignored(self) -> None:
        assert parse(b"id: 7\nid: 8\x009\ndata: a\n\n")[0].id == "7"

    @pytest.mark.parametrize("value", [b"", b"-1", b"1.5", b"1s", b" 1", b"\xd9\xa1", b"\xc2\xb2"])
    def test_a_retry_that_is_not_ascii_digits_is_ignored(self, value: bytes) -> None:
        assert parse(b"retry:" + b" " + value + b"\ndata: a\n\n")[0].retry is None

    def test_a_retry_counts_without_an_event(self) -> None:
        parser = Parser()
        assert parser.feed(b"retry: 3000\n\n") == []
        assert parser.retry == 3000

    def test_a_type_does_not_outlive_its_block(self) -> None:
        assert [event.type for event in parse(b"event: x\n\ndata: a\n\n")] == ["message"]

    def test_unknown_fields_and_names_in_capitals_are_ignored(self) -> None:
        assert parse(b"DATA: a\nfoo: b\n data: c\n\n") == []

    def test_comments_and_lines_are_kept(self) -> None:
        parser = Parser()
        parser.feed(b": ping\n:\ndata: a: b\n\n")
        assert parser.comments == ["ping", ""]
        assert parser.lines == [": ping", ":", "data: a: b", ""]


class TestBytes:
    def test_only_the_first_bom_is_stripped(self) -> None:
        bom = b"\xef\xbb\xbf"
        assert parse(bom + b"data: a\n\n" + bom + b"data: b\n\n") == [ServerSentEvent(data="a")]

    def test_other_line_separators_are_text(self) -> None:
        text = "a\u2028b\u2029c\x85d\x0be\x0cf"
        assert parse(f"data: {text}\n\n".encode())[0].data == text

    def test_invalid_utf8_is_replaced(self) -> None:
        assert parse(b"data: a\xffb\n\n")[0].data == "a\ufffdb"

    def test_a_cr_dispatches_without_waiting_for_a_lf(self) -> None:
        parser = Parser()
        assert parser.feed(b"data: a\r\r") == [ServerSentEvent(data="a")]
        assert parser.feed(b"\ndata: b\r\n\r\n") == [ServerSentEvent(data="b")]

    @pytest.mark.parametrize("end", [b"\n", b"\r", b"\r\n"])
    def test_any_split_gives_the_same_events(self, end: bytes) -> None:
        text = (
            "\ufeff: c\nretry: 5\nevent: e\nid: 1\ndata: é\u2028\ndata: 😀\n\ndata\n\ndata: x\n\n"
        )
        stream = text.encode().replace(b"\n", end)
        whole = parse(stream)
        assert len(whole) == 3
        for cut in range(len(stream) + 1):
            assert parse(stream[:cut], stream[cut:]) == whole
        assert parse(*(bytes([byte]) for byte in stream)) == whole


LINES = st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]))


@given(
    st.lists(st.tuples(LINES, st.lists(LINES, min_size=1)), max_size=5),
    st.sampled_from(["\n", "\r", "\r\n"]),
    st.lists(st.integers(0, 200)),
)
def test_what_was_written_is_read(
    events: list[tuple[str, list[str]]], end: str, cuts: list[int]
) -> None:
    blocks = [[f"event: {name}", *(f"data: {line}" for line in data), ""] for name, data in events]
    stream = "".join(line + end for block in blocks for line in block).encode()
    places = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    pieces = [stream[a:b] for a, b in itertools.pairwise(places)]
    assert parse(*pieces) == [
        ServerSentEvent(name or "message", "\n".join(data)) for name, data in events
    ]


HEAD = b"HTTP/1.1 200 OK\r\nX-Two: a\r\nx-two: b\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
FIRST = b"9;x=y\r\ndata: a\n\n\r\n"


@contextlib.contextmanager
def answering(*pieces: bytes, reset: bool = False) -> Iterator[str]:
    """A URL that answers one request with these writes, then closes."""

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(65536)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for piece in pieces:
                connection.sendall(piece)
            if reset:
                linger = struct.pack("ii", 1, 0)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/events?after=1"
        thread.join()


class TestStream:
    def test_chunks_and_duplicated_headers(self) -> None:
        answer = CHUNKED + FIRST + b"4\r\ndata\r\n5\r\n: b\n\n\r\n0\r\nTrailer: x\r\n\r\n"
        with answering(*(bytes([byte]) for byte in answer)) as url, Stream(url) as stream:
            assert stream.status == 200
            assert stream.headers.get_all("X-TWO") == ["a", "b"]
            assert [event.data for event in stream.events()] == ["a", "b"]
            assert stream.ended == "clean"

    @pytest.mark.parametrize("reset", [False, True])
    def test_a_cut_keeps_what_came_before(self, reset: bool) -> None:
        with (
            answering(CHUNKED + FIRST + b"ff\r\ndata: b\n\n", reset=reset) as url,
            Stream(url) as stream,
        ):
            assert [event.data for event in stream.events()] == ["a", "b"]
            assert stream.ended == "cut"

    def test_a_body_shorter_than_its_length_is_cut(self) -> None:
        with answering(HEAD + b"Content-Length: 9\r\n\r\nabc") as url, Stream(url) as stream:
            assert stream.read() == b"abc"
            assert stream.ended == "cut"

    def test_without_a_length_the_connections_end_is_the_bodys(self) -> None:
        with answering(HEAD + b"\r\ndata: a\n\n") as url, Stream(url) as stream:
            assert [event.data for event in stream.events()] == ["a"]
            assert stream.ended == "clean"

    def test_silence_is_a_timeout(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
            with pytest.raises(TimeoutError):
                Stream(url, timeout=0.01)

    def test_request_returns_errors_too(self) -> None:
        answer = b"HTTP/1.1 429 Slow\r\nRetry-After: 3\r\nContent-Length: 2\r\n\r\n{}"
        with answering(answer) as url:
            response = request("POST", url, json={"a": 1})
        assert (response.status, response.headers["retry-after"], response.json()) == (429, "3", {})

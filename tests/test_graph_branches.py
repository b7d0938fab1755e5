"""Graphs on branches: answers given anew, turns that the graph has missed, and what nodes write."""

from __future__ import annotations

import json
import logging
import operator
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any, TypedDict

import pytest
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, ToolMessage
from langgraph.checkpoint.base import BaseCheckpointSaver, empty_checkpoint
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import Command, interrupt

from flask_stream.engine.history import past
from flask_stream.sources.base import CONTINUE, NO_ANSWER, Input, Turn
from flask_stream.sources.langgraph import LangGraphSource
from flask_stream.sources.messages import Messages
from flask_stream.stores.base import Run
from flask_stream.stores.memory import MemoryStore

Said = list[tuple[str, Any]]


class Got(TypedDict):
    """What became of it."""

    got: Annotated[list[Any], operator.add]


class State(Got):
    """A question, and what became of it."""

    question: str


class Asking:
    """One conversation with a graph, run by run. `ran` is which of its nodes have run."""

    def __init__(self, saver: BaseCheckpointSaver[Any]) -> None:
        self.saver = saver
        self.ran: list[str] = []
        self.source: LangGraphSource

    def node(self, name: str) -> Any:
        """A node that only says that it has run."""

        def work(state: State) -> dict[str, Any]:
            self.ran.append(name)
            return {"got": [name]}

        return work

    def asks(self, name: str, times: int = 1) -> Any:
        """A node that asks a person so many times. An answer `bad` it cannot use."""

        def ask(state: State) -> dict[str, Any]:
            self.ran.append(name)
            answers = [interrupt(f"{name} {n + 1}?") for n in range(times)]
            if "bad" in answers:
                raise KeyError("bad")
            return {"got": [f"{name}: {json.dumps(answers)}"]}

        return ask

    def compile(self, graph: Any) -> None:
        self.source = LangGraphSource(graph.compile(checkpointer=self.saver), state=["got"])

    def run(
        self, run: str, parent: str | None = None, resume: Any = NO_ANSWER, **more: Any
    ) -> Said:
        value = {"question": f"question {run}"}
        given = Input(value, run=run, parent=parent, thread="thread", resume=resume, **more)
        self.ran.clear()
        return events(self.source, given)

    def got(self, *asked: Any, **more: Any) -> Any:
        """What the graph has come to; it must not have asked."""
        said = self.run(*asked, **more)
        assert not of(said, "interrupt")
        return of(said, "state")[-1]["values"]["got"]


def events(source: LangGraphSource, input: Input) -> Said:
    return [(type, json.loads(data)) for type, data in source.stream(input)]


def of(said: Said, type: str) -> list[Any]:
    return [data for one, data in said if one == type]


def texts(said: Said) -> list[str]:
    """The text of each message."""
    found = {data["id"]: "" for data in of(said, "message_start")}
    for data in of(said, "chunk"):
        found[data["message"]] += data["content"]
    return [*found.values()]


def ids(said: Said) -> dict[str, str]:
    """What was asked, and its id."""
    return {data["value"]: data["id"] for data in of(said, "interrupt")}


def line(*nodes: tuple[str, Any], state: Any = State) -> Any:
    graph: Any = StateGraph(state)
    graph.add_sequence([*nodes])
    graph.add_edge(START, nodes[0][0])
    return graph


def side(*nodes: tuple[str, Any]) -> Any:
    """The nodes beside each other."""
    graph: Any = StateGraph(State)
    for name, node in nodes:
        graph.add_node(name, node)
        graph.add_edge(START, name)
    return graph


@pytest.fixture(params=["memory", "sqlite"])
def asking(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Asking]:
    if request.param == "memory":
        yield Asking(InMemorySaver())
        return
    file = tmp_path / "checkpoints.db"
    with closing(sqlite3.connect(file, check_same_thread=False)) as connection:
        yield Asking(SqliteSaver(connection))


# Answers given anew


def within(asking: Asking, times: int = 1) -> Any:
    """A graph with two nodes, of which the second asks."""
    return line(("pre", asking.node("pre")), ("ask", asking.asks("ask", times))).compile()


def called(asking: Asking, times: int = 1) -> Any:
    """A node that calls a graph, as a tool does."""
    inner = within(asking, times)

    def call(state: State) -> dict[str, Any]:
        return {"got": inner.invoke({"question": "", "got": []})["got"]}

    return call


def deep(asking: Asking) -> Any:
    """A subgraph in a subgraph."""
    return line(("mid", within(asking))).compile()


@pytest.mark.parametrize("below", [within, called])
@pytest.mark.parametrize("first", ["yes", "bad"])
def test_an_answer_below_is_given_anew(asking: Asking, below: Any, first: str) -> None:
    asking.compile(line(("before", asking.node("before")), ("sub", below(asking))))
    assert ids(asking.run("1")).keys() == {"ask 1?"}
    if first == "bad":
        with pytest.raises(KeyError):
            asking.run("2", "1", "bad")
    else:
        assert asking.got("2", "1", "yes")[-1] == 'ask: ["yes"]'
    for run, answer in (("3", "no"), ("4", "again"), ("5", False)):
        assert asking.got(run, "1", answer)[-1] == f"ask: [{json.dumps(answer)}]"
    assert "before" not in asking.ran, "what is above has not run anew"


def test_what_a_subgraph_has_done_is_not_done_anew(asking: Asking) -> None:
    asking.compile(line(("sub", within(asking))))
    asked = ids(asking.run("1"))
    assert asking.ran == ["pre", "ask"]
    asking.got("2", "1", "yes")
    # By its id: when it is asked anew, it has another.
    assert asking.got("3", "1", {asked["ask 1?"]: "no"}) == ["pre", 'ask: ["no"]']
    assert asking.ran == ["ask"]


def test_of_two_questions_below_only_the_first_can_be_answered_anew(asking: Asking) -> None:
    asking.compile(line(("sub", within(asking, times=2))))
    asking.run("1")
    assert ids(asking.run("2", "1", "yes")).keys() == {"ask 2?"}
    assert asking.got("3", "2", "sure")[-1] == 'ask: ["yes", "sure"]'
    # It is not there any more where it has asked the second.
    with pytest.raises(ValueError, match="can no longer be answered"):
        asking.run("3b", "2", "unsure")
    assert ids(asking.run("2b", "1", "no")).keys() == {"ask 2?"}
    assert asking.got("4b", "2b", "never")[-1] == 'ask: ["no", "never"]'


def test_an_answer_two_levels_below_is_not_given_to_another_question(asking: Asking) -> None:
    asking.compile(line(("sub", deep(asking))))
    asking.run("1")
    with pytest.raises(KeyError):
        asking.run("2", "1", "bad")
    assert asking.got("3", "1", "yes")[-1] == 'ask: ["yes"]'
    # LangGraph would begin the inner one from its start, and it might ask something else.
    with pytest.raises(ValueError, match="can no longer be answered"):
        asking.run("4", "1", "no")


def test_two_questions_below_go_on_from_either_answer_until_the_end(asking: Asking) -> None:
    asking.compile(line(("sub", within(asking, times=2))))
    asking.run("1")
    asking.run("2", "1", "yes")
    with pytest.raises(KeyError):
        asking.run("3", "2", "bad")
    assert asking.got("4", "2", "good")[-1] == 'ask: ["yes", "good"]'


def test_parallel_subgraphs_are_not_told_each_others_answers(asking: Asking) -> None:
    left = line(("l", asking.asks("left")), state=Got).compile()
    right = line(("r", asking.asks("right")), state=Got).compile()
    asking.compile(side(("left", left), ("right", right)))
    asked = ids(asking.run("1"))
    both = {asked["left 1?"]: "yes", asked["right 1?"]: "no"}
    assert asking.got("2", "1", both) == ['left: ["yes"]', 'right: ["no"]']
    with pytest.raises(ValueError, match="can no longer be answered"):
        asking.run("3", "1", {asked["left 1?"]: "no", asked["right 1?"]: "yes"})


def test_an_answer_to_one_of_two_is_taken_back_with_what_came_of_it(asking: Asking) -> None:
    asking.compile(side(("a", asking.asks("a")), ("b", asking.asks("b"))))
    asked = {name[0]: id for name, id in ids(asking.run("1")).items()}
    assert ids(asking.run("2", "1", {asked["a"]: "yes"})).keys() == {"b 1?"}
    # The graph waits for b still, and a has gone on with its yes.
    no = {asked["a"]: "no", asked["b"]: "no"}
    assert asking.got("3", "1", no) == ['a: ["no"]', 'b: ["no"]']


def test_an_answer_is_for_one_question(asking: Asking) -> None:
    asking.compile(line(("ask", asking.asks("ask", times=2))))
    asked = ids(asking.run("1"))
    assert ids(asking.run("2", "1", "yes")).keys() == {"ask 2?"}
    # Not with the answer that was given to the other run.
    assert ids(asking.run("3", "1", {asked["ask 1?"]: "no"})).keys() == {"ask 2?"}
    assert asking.got("4", "3", "never") == ['ask: ["no", "never"]']


def test_what_another_branch_has_begun_is_not_there(asking: Asking) -> None:
    first, second = within(asking), line(("b", asking.node("b"))).compile()

    def call(state: State) -> dict[str, Any]:
        got = first.invoke({"question": "", "got": []})["got"]
        then: dict[str, Any] = second.invoke({"question": "", "got": [got[-1]]})
        return then

    asking.compile(line(("call", call)))
    asking.run("1")
    assert asking.got("2", "1", "yes") == ['ask: ["yes"]', "b"]
    assert asking.got("3", "1", "no") == ['ask: ["no"]', "b"]
    assert asking.ran == ["ask", "b"]


def test_an_answer_costs_the_same_in_a_long_thread(asking: Asking) -> None:
    """The calls of the saver, and the checkpoints that it loads, before the graph goes on."""
    kind, counts = type(asking.saver), {"calls": 0, "loaded": 0}

    class Counting(kind):  # type: ignore[misc, valid-type]
        def get_tuple(self, *args: Any, **kwargs: Any) -> Any:
            counts["calls"] += 1
            found = super().get_tuple(*args, **kwargs)
            counts["loaded"] += found is not None
            return found

        def list(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
            counts["calls"] += 1
            for found in super().list(*args, **kwargs):
                counts["loaded"] += 1
                yield found

    asking.saver.__class__ = Counting
    asking.compile(line(("sub", within(asking)), ("end", lambda state: None)))

    def answered(turn: int) -> dict[str, int]:
        asked = f"{turn} asks"
        asking.run(asked, None if turn == 0 else f"{turn - 1} is answered")
        counts.update(calls=0, loaded=0)
        asking.run(f"{turn} is answered", asked, "yes")
        return {**counts}

    costs = [answered(turn) for turn in range(10)]
    assert costs[2] == costs[-1]
    assert costs[-1]["calls"] <= 10, costs[-1]
    assert costs[-1]["loaded"] <= 12, costs[-1]


def test_a_note_of_before_says_nothing_of_below(asking: Asking) -> None:
    asking.compile(line(("sub", within(asking, times=2))))
    asking.run("1")
    asking.run("2", "1", "yes")
    saver, note = asking.saver, {"configurable": {"thread_id": "thread"}}
    for one in [*saver.list(note, filter={"flask_stream_run": "2"})]:  # type: ignore[arg-type]
        about: Any = {**one.metadata}
        if about.pop("flask_stream_below", None) is not None:
            about["flask_stream_run"] = "old"
            place: Any = {"configurable": {"thread_id": "thread", "checkpoint_ns": "flask_stream"}}
            saver.put(place, empty_checkpoint(), about, {})
    assert asking.got("3", "old", "sure")[-1] == 'ask: ["yes", "sure"]'


@pytest.mark.parametrize("answer", [None, {}])
@pytest.mark.parametrize("below", [None, within, called])
def test_null_and_an_empty_object_are_answers(asking: Asking, answer: Any, below: Any) -> None:
    node = below(asking, times=2) if below else asking.asks("ask", times=2)
    asking.compile(line(("sub", node)))
    asking.run("1")
    assert ids(asking.run("2", "1", answer)).keys() == {"ask 2?"}
    assert asking.got("3", "2", answer)[-1] == f"ask: {json.dumps([answer, answer])}"
    if below:  # it has gone on, and could not be told
        with pytest.raises(ValueError, match="can no longer be answered"):
            asking.run("2b", "1", answer)
    else:
        assert ids(asking.run("2b", "1", answer)).keys() == {"ask 2?"}
        assert asking.got("3b", "2b", "x") == [f"ask: {json.dumps([answer, 'x'])}"]


def test_what_was_broken_off_goes_on_without_an_answer(asking: Asking) -> None:
    broken = True

    def breaks(state: State) -> dict[str, Any]:
        if broken:
            raise KeyError
        return {"got": ["whole"]}

    asking.compile(side(("ask", asking.asks("ask")), ("breaks", breaks)))
    with pytest.raises(KeyError):
        asking.run("1")
    broken = False
    assert ids(asking.run("2", "1", CONTINUE)).keys() == {"ask 1?"}
    assert asking.got("3", "2", None) == ["ask: [null]", "whole"]


# Turns that it has missed


def test_a_run_that_never_reached_the_graph_forgets_nothing(asking: Asking) -> None:
    heard: list[str] = []

    def hear(state: MessagesState) -> dict[str, Any]:
        heard[:] = [message.text for message in state["messages"]]
        return {"messages": [AIMessage("heard")]}

    source = LangGraphSource(
        line(("hear", hear), state=MessagesState).compile(checkpointer=asking.saver)
    )

    def ask(run: str, history: list[Turn], before: list[tuple[str, int]]) -> list[str]:
        parent = before[0][0] if before else None
        told = {"question": run}
        events(source, Input(told, history, run, parent, "thread", before=before))
        return heard

    ask("1", [], [])
    # The graph's own memory is another than the history, which is what people were shown.
    one, missed, third = Turn("1", "shown"), Turn("missed", "by another"), Turn("3", "shown")
    assert ask("3", [one, missed], [("2", 0), ("1", 1)]) == [
        *("1", "heard", "missed", "by another", "3")
    ]
    before = [("3", 0), ("2", 1), ("1", 2)]
    assert len(ask("4", [one, missed, third], before)) == 7, "and no turn is told twice"
    # Of several that asked and answered one turn, the graph knows the question.
    assert ask("5", [one], [("resumed", 0), ("1", 0)]) == ["1", "heard", "5"]
    assert ask("6", [one], [("unknown", 1)]) == ["1", "shown", "6"], "it knows none of them"


def test_an_answer_is_for_the_run_that_has_asked(asking: Asking) -> None:
    asking.compile(line(("ask", asking.asks("ask"))))
    asking.run("1")
    with pytest.raises(ValueError, match="no state of the run"):
        asking.run("3", "2", "yes", before=[("2", 0), ("1", 0)])


def test_the_runs_before_are_counted_by_the_turns_since() -> None:
    store = MemoryStore()
    parent = None
    for number, value in enumerate([{"question": "a"}, {"resume": 1}, {"question": "b"}]):
        id = f"{number}"
        run = Run(id, "graph", "talk", parent, "me", json.dumps(value), number, "done")
        store.create(run, "me", 60.0)
        parent = id
    assert past(store, store.branch(parent or "", 50), 50) == (
        [Turn("a", ""), Turn("b", "")],
        [("2", 0), ("1", 1), ("0", 1)],
    )
    assert past(store, store.branch(parent or "", 1), 1) == ([Turn("b", "")], [("2", 0)])
    assert past(store, [], 50) == ([], [])


# What nodes write


def told(*nodes: Any, question: str = "Why?") -> Said:
    graph = line(*((f"n{place}", node) for place, node in enumerate(nodes)), state=MessagesState)
    return events(LangGraphSource(graph.compile()), Input({"question": question}))


def says(*messages: Any) -> Any:
    return lambda state: {"messages": [*messages]}


@pytest.mark.parametrize(
    "written",
    [
        [{"role": "ai", "content": "hello world"}],
        [{"role": "assistant", "content": [{"type": "text", "text": "hello world"}]}],
        ("assistant", "hello world"),
        {"role": "ai", "content": "hello world"},
        [("user", "no"), {"role": "system", "content": "no"}, ("ai", "hello world"), "no"],
    ],
)
def test_messages_may_be_written_as_objects_or_pairs(written: Any) -> None:
    def node(state: MessagesState) -> dict[str, Any]:
        return {"messages": written}

    def goes(state: MessagesState) -> Command[str]:
        return Command(update={"messages": written})

    for one in (node, goes):
        said = told(one)
        assert texts(said) == ["hello world"]
        assert of(said, "message_start") == [{"id": "m1", "role": "assistant", "node": "n0"}]


def test_what_is_written_below_is_told_once() -> None:
    inner = line(("in", says(("ai", "one"))), ("on", says(("ai", "two"))), state=MessagesState)
    said = told(inner.compile(), says(("ai", "three"), AIMessage("four")))
    assert texts(said) == ["one", "two", "four", "three"]
    assert [data["node"] for data in of(said, "message_start")] == ["n0/in", "n0/on", "n1", "n1"]


def test_a_written_call_and_its_result() -> None:
    call = {"name": "add", "args": {"a": 1}, "id": "c1", "type": "tool_call"}
    said = told(
        says({"role": "ai", "content": "", "tool_calls": [call]}),
        says({"role": "tool", "content": "2", "tool_call_id": "c1"}),
    )
    assert of(said, "tool_call") == [{"id": "c1", "name": "add", "args": {"a": 1}}]
    assert [data["content"] for data in of(said, "tool_result")] == ["2"]


def test_what_is_no_message_is_left_alone() -> None:
    class Loose(TypedDict):
        messages: Annotated[list[Any], operator.add]

    written = [
        {"role": "what", "content": 1},
        {"role": "ai"},
        {},
        (),
        ("ai",),
        5,
        None,
        ["ai", "x"],
    ]
    graph = line(("n", lambda state: {"messages": written}), state=Loose)
    said = events(LangGraphSource(graph.compile(), lambda input: {"messages": []}), Input({}))
    assert of(said, "message_start") == []


def test_what_another_agent_says_in_its_name_is_told() -> None:
    said = told(says(HumanMessage("It rains.", name="researcher")), says(HumanMessage("Go on.")))
    assert texts(said) == ["It rains."]
    assert of(said, "message_start") == [{"id": "m1", "role": "assistant", "node": "n0"}]
    # Not what it has been heard saying, and not the person's own words.
    heard = (says(AIMessage("It rains.")), says(HumanMessage("It rains.", name="researcher")))
    assert texts(told(*heard)) == ["It rains."]
    assert texts(told(says(HumanMessage("Why?", name="me")))) == []

    def named(state: MessagesState) -> dict[str, Any]:
        return {"messages": [state["messages"][0].model_copy(update={"name": "me"})]}

    assert texts(told(named)) == []


def test_a_hand_over_to_a_node_above_ends_its_step() -> None:
    def hand(state: State) -> Command[str]:
        return Command(graph=Command.PARENT, goto="there", update={"got": ["handed"]})

    graph: Any = StateGraph(State)
    graph.add_node("team", line(("one", hand)).compile())
    graph.add_node("there", lambda state: {"got": ["there"]})
    graph.add_edge(START, "team")
    said = events(LangGraphSource(graph.compile()), Input({"question": "?"}))
    assert [f"{data['node']} {data['status']}" for data in of(said, "step")] == [
        *("team start", "team/one start", "team/one done", "team done"),
        *("there start", "there done"),
    ]


# Messages


def parts(*said: Any) -> Said:
    messages = Messages()
    found = [event for one in said for event in messages.add(one)]
    return [(type, json.loads(data)) for type, data in [*found, *messages.end()]]


def test_a_message_opens_with_what_it_first_says() -> None:
    def piece(text: str, id: str, **more: Any) -> AIMessageChunk:
        return AIMessageChunk(content=text, id=id, **more)

    assert parts(piece("", "a"), AIMessage("", id="b")) == []
    said = parts(piece("", "a"), piece("x", "b"), piece("y", "a"))
    assert [type for type, _ in said] == ["message_start", "chunk", "message_start", "chunk"]
    assert sorted(texts(said)) == ["x", "y"]
    call = {"name": "add", "args": "{}", "id": "c", "index": 0}
    said = parts(piece("", "a", tool_call_chunks=[call]))
    assert [type for type, _ in said] == ["message_start", "tool_call"]


def test_a_persons_no_is_no_crash(caplog: pytest.LogCaptureFixture) -> None:
    no = "User rejected the tool call for `pay` with reason: too much"
    crash = "OSError: /etc/passwd"
    with caplog.at_level(logging.WARNING):
        ((_, said),) = parts(ToolMessage(no, tool_call_id="c", name="pay", status="error"))
        assert (said["content"], said["status"]) == (no, "error")
        assert not caplog.records
        ((_, said),) = parts(ToolMessage(crash, tool_call_id="c", name="pay", status="error"))
        assert said["content"] == "The tool failed."
        assert crash in caplog.text

"""The contract of a source, which turns what a chain streams into events.

There is one source per chain, and for a chain that keeps state one more per app
(`with_checkpointer`). `stream` is called once per run. A source yields only the chain's own events:
the first event of a log (`start`) and the last (`end`) belong to the run.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from ..events import NewEvent
from .finish_reasons import FinishReason

#: No answer. An answer may be any JSON value, including null.
NO_ANSWER: Final = object()
#: Instead of an answer: the parent run was interrupted without a question and is to continue.
CONTINUE: Final = object()


#: The default for how many tokens of earlier turns, roughly, a question is sent with.
HISTORY_TOKENS = 8000


class Turn(NamedTuple):
    """An earlier question and its answer. `whole` is whether the answer is complete."""

    question: str
    answer: str
    whole: bool = True


@dataclass(frozen=True, slots=True)
class Input:
    """What a run was started with.

    `value` is the decoded `input` of the run: `{"question": "…"}`, or an object of the chain's own
    schema. `history` are the earlier turns. `run` and `parent` are the ids of this run and of the
    one that it follows. `thread` is the id of a graph's state, the same for all runs of a
    conversation. `resume` is the answer to the parent's interrupt, `NO_ANSWER`, or `CONTINUE`.
    `before` are the earlier runs, the parent first, each with the number of turns that began after
    it. `history_tokens` limits, roughly, how much of the history a chain gets as messages.
    """

    value: dict[str, Any]
    history: Sequence[Turn] = ()
    run: str = ""
    parent: str | None = None
    thread: str = ""
    resume: Any = NO_ANSWER
    before: Sequence[tuple[str, int]] = ()
    history_tokens: int = HISTORY_TOKENS

    @property
    def question(self) -> str:
        return str(self.value["question"])


def resume_value(value: dict[str, Any]) -> Any:
    """Return the answer to the parent's interrupt in this input; `NO_ANSWER` for a question."""
    return value["resume"] if value.keys() == {"resume"} else NO_ANSWER


class Source(ABC):
    """One chain, ready to be run."""

    #: The most earlier turns that a question is sent with.
    turns: int = 50
    #: The most characters in all texts of an input object; None for the limit of a question.
    longest: int | None = None

    @property
    def durable(self) -> bool:
        """Whether the state of a run is saved after each step.

        If so, an aborted run can continue where it was, and an interrupt can be answered.
        """
        return False

    @abstractmethod
    def check(self, value: dict[str, Any]) -> None:
        """Raise BadRequest, which names the field, if the chain does not accept this input."""

    def check_history(  # noqa: B027 - most accept any
        self, value: dict[str, Any], earlier: Callable[[], Sequence[Turn]]
    ) -> None:
        """Raise BadRequest if the input cannot follow these turns."""

    @abstractmethod
    def stream(self, input: Input) -> Generator[NewEvent, None, FinishReason | None]:
        """Run the chain, yield its events as they come, and return the finish reason, or None.

        Closing the generator closes the chain's. Raises what the chain raises, or `RunFailed`.
        """

    def with_checkpointer(self, find: Callable[[Any], Any]) -> Source:
        """Return the source of the same chain for one app. Most sources return themselves.

        `find` returns the app's checkpointer for a graph, or None. It is called at the first run.
        """
        return self

    def forget(self, thread: str) -> None:  # noqa: B027 - most store nothing
        """Delete the stored state of a conversation. Raises what its store raises."""

"""What a source is: it turns what a chain streams into events.

A source is made once per chain, and one that keeps state once more for each app
(`with_checkpointer`); it is asked once per run. It says only what the chain said: the first event
of a log (`start`) and the last (`end`) belong to the run.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from ..events import NewEvent
from .finish_reasons import FinishReason

#: No answer at all: an answer may be anything that JSON can say, null included.
NO_ANSWER: Final = object()
#: In place of an answer: the parent had asked nothing, it was broken off and is to go on.
CONTINUE: Final = object()


#: Tokens of earlier turns, about, that a question brings along, where nothing else is said.
HISTORY_TOKENS = 8000


class Turn(NamedTuple):
    """An earlier question of the conversation, and what was answered, to its end or not."""

    question: str
    answer: str
    whole: bool = True


@dataclass(frozen=True, slots=True)
class Input:
    """What a run was started with: the client's own words, and what was said before them.

    `value` is the decoded `input` of the run: `{"question": "…"}`, or what the chain's own
    schema asks for. `run` and `parent` are the ids of this run and of the one that it follows.
    `thread` is where a graph keeps its state: the same for all runs of a conversation. `resume`
    is the answer to what the parent has asked, `NO_ANSWER`, or `CONTINUE`. `before` are the runs
    before this one, the parent first, and how many turns of the history have begun after each.
    `history_tokens` is how much of the history, about, reaches a chain as messages.
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
    """The answer that this input is to what the parent has asked; NOTHING for a question."""
    return value["resume"] if value.keys() == {"resume"} else NO_ANSWER


class Source(ABC):
    """One chain, ready to be asked."""

    #: Earlier turns that a question brings along at most; what the model can take is the chain's.
    turns: int = 50
    #: Characters that the texts of an input which is an object may have together; None for as many
    #: as a question.
    longest: int | None = None

    @property
    def durable(self) -> bool:
        """Whether what a run has done is kept, step by step.

        If so, one that was broken off goes on where it was, and one that has asked can be answered.
        """
        return False

    @abstractmethod
    def check(self, value: dict[str, Any]) -> None:
        """Raise BadRequest, which names the field, for an input that the chain does not take."""

    def check_history(  # noqa: B027 - most do not mind
        self, value: dict[str, Any], earlier: Callable[[], Sequence[Turn]]
    ) -> None:
        """Raise BadRequest for an input that cannot come after these turns."""

    @abstractmethod
    def stream(self, input: Input) -> Generator[NewEvent, None, FinishReason | None]:
        """Ask the chain, yield what it says, as it says it, and return why its answer is over.

        The reason is None where it is not known.

        Closing the generator closes the chain's. Raises whatever the chain raises, or `Fault`.
        """

    def with_checkpointer(self, find: Callable[[Any], Any]) -> Source:
        """The same chain as one app has it: what keeps nothing is in all apps the same.

        `find` gives the checkpointer that the app has for a graph, or None. It is called when the
        graph is first asked.
        """
        return self

    def forget(self, thread: str) -> None:  # noqa: B027 - most keep nothing
        """Remove what is kept of a conversation. Raises whatever keeps it raises."""

"""How far a run is and how long it will still take: bars on a terminal, plain lines elsewhere, always on stderr."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

Clock = Callable[[], float]

_SECONDS_BETWEEN_LINES = 10.0


@dataclass(frozen=True, slots=True)
class Step:
    """One unit of a run: a variant to build, or a check on a variant. ``kind`` tells which take equally long."""

    label: str
    kind: str


class Display(AbstractContextManager["Display"], Protocol):
    """Shows a run: a plan of steps, and within each step what :class:`~.checks.base.Progress` reports."""

    def plan(self, steps: Sequence[Step]) -> None: ...

    def begin(self, step: Step) -> None: ...

    def start(self, label: str, total: float) -> None: ...

    def advance(self, amount: float = 1.0) -> None: ...

    def end(self, step: Step, outcome: str) -> None: ...

    def note(self, text: str) -> None: ...


class Silent(Display):
    """Shows nothing."""

    def plan(self, steps: Sequence[Step]) -> None:
        pass

    def begin(self, step: Step) -> None:
        pass

    def start(self, label: str, total: float) -> None:
        pass

    def advance(self, amount: float = 1.0) -> None:
        pass

    def end(self, step: Step, outcome: str) -> None:
        pass

    def note(self, text: str) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


@dataclass(slots=True)
class Forecast:
    """Estimates the time left of a run from the steps done and the pace of the present one.

    A check is expected to take as long as it took on an earlier variant; a step of a kind not yet seen as long as
    the mean step.
    """

    clock: Clock = time.monotonic
    waiting: list[Step] = field(default_factory=list)
    took: dict[str, float] = field(default_factory=dict)
    began: float = 0.0
    task_began: float = 0.0
    total: float = 0.0
    done: float = 0.0

    def plan(self, steps: Sequence[Step]) -> None:
        self.waiting = list(steps)
        self.took = {}

    def begin(self, step: Step) -> None:
        if step in self.waiting:
            self.waiting.remove(step)
        self.began = self.task_began = self.clock()
        self.total = self.done = 0.0

    def start(self, total: float) -> None:
        self.task_began, self.total, self.done = self.clock(), total, 0.0

    def advance(self, amount: float) -> None:
        self.done += amount

    def end(self, step: Step, *, ran: bool) -> float:
        seconds = self.clock() - self.began
        if ran:
            self.took[step.kind] = seconds
        return seconds

    @property
    def share(self) -> float | None:
        """How much of the present task is done, 0..1."""
        return min(self.done / self.total, 1.0) if self.total > 0 else None

    def task_left(self) -> float | None:
        """Seconds left of the present task, None while nothing of it is done."""
        share = self.share
        return None if not share else (self.clock() - self.task_began) * (1 - share) / share

    def left(self, step: Step | None) -> float | None:
        """Seconds left of the run, None while nothing is known."""
        known = list(self.took.values())
        mean = sum(known) / len(known) if known else None
        present = 0.0 if step is None else self._left_of(step, mean)
        ahead = [self.took.get(waiting.kind, mean) for waiting in self.waiting]
        parts = [present, *ahead]
        return None if any(part is None for part in parts) else sum(part for part in parts if part is not None)

    def _left_of(self, step: Step, mean: float | None) -> float | None:
        own = self.task_left()
        if own is not None:
            return own
        expected = self.took.get(step.kind, mean)
        return None if expected is None else max(expected - (self.clock() - self.began), 0.0)


class Lines(Display):
    """One line per step, and one every ten seconds within it."""

    def __init__(self, stream: TextIO, clock: Clock = time.monotonic, every: float = _SECONDS_BETWEEN_LINES) -> None:
        self._stream = stream
        self._clock = clock
        self._every = every
        self._forecast = Forecast(clock)
        self._total = 0
        self._number = 0
        self._step: Step | None = None
        self._task = ""
        self._last = 0.0

    def plan(self, steps: Sequence[Step]) -> None:
        self._forecast.plan(steps)
        self._total, self._number = len(steps), 0

    def begin(self, step: Step) -> None:
        self._forecast.begin(step)
        self._number += 1
        self._step, self._task, self._last = step, "", self._clock()
        left = self._forecast.left(step)
        self._print(f"[{self._number}/{self._total}] {step.label}" + (f" ({about(left)} left)" if left else ""))

    def start(self, label: str, total: float) -> None:
        self._forecast.start(total)
        self._task = label

    def advance(self, amount: float = 1.0) -> None:
        self._forecast.advance(amount)
        share = self._forecast.share
        if share is None or self._clock() - self._last < self._every:
            return
        self._last = self._clock()
        task, run = self._forecast.task_left(), self._forecast.left(self._step)
        times = [f"{about(task)} left" if task else "", f"{about(run)} for the whole run" if run else ""]
        self._print(f"    {self._task}: {share:.0%}" + "".join(f", {text}" for text in times if text))

    def end(self, step: Step, outcome: str) -> None:
        seconds = self._forecast.end(step, ran=outcome == "ok")
        self._step = None
        self._print(f"    {outcome} after {about(seconds)}")

    def note(self, text: str) -> None:
        self._print(text)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def _print(self, text: str) -> None:
        print(text, file=self._stream, flush=True)


class RichBars(Display):
    """Two bars on a terminal: the run, and the task within the present step."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TaskProgressColumn, TextColumn
        from rich.progress import Progress as Bars

        self._forecast = Forecast()
        self._step: Step | None = None
        self._bars: Bars = Bars(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[left]}", markup=False),
            console=Console(file=stream),
            transient=True,
        )
        self._run: TaskID | None = None
        self._task: TaskID | None = None

    def plan(self, steps: Sequence[Step]) -> None:
        self._forecast.plan(steps)
        if self._run is not None:  # a second plan on the same display follows the first
            self._bars.remove_task(self._run)
        self._run = self._bars.add_task("audit", total=len(steps), left="")
        self._bars.start()

    def begin(self, step: Step) -> None:
        self._forecast.begin(step)
        self._step = step
        self._task = self._bars.add_task(step.label, total=None, left="")

    def start(self, label: str, total: float) -> None:
        self._forecast.start(total)
        if self._task is not None and self._step is not None:
            name = self._step.label if label in self._step.label else f"{self._step.label}: {label}"
            self._bars.reset(self._task, description=name, total=total or None, left="")

    def advance(self, amount: float = 1.0) -> None:
        self._forecast.advance(amount)
        task, run = self._forecast.task_left(), self._forecast.left(self._step)
        if self._task is not None:
            self._bars.update(self._task, advance=amount, left=f"{about(task)} left" if task else "")
        if self._run is not None and run:
            self._bars.update(self._run, left=f"{about(run)} left")

    def end(self, step: Step, outcome: str) -> None:
        seconds = self._forecast.end(step, ran=outcome == "ok")
        if self._task is not None:
            self._bars.remove_task(self._task)
        if self._run is not None:
            left = self._forecast.left(None)
            self._bars.update(self._run, advance=1, left=f"{about(left)} left" if left else "")
        self._task = self._step = None
        self.note(f"{step.label}: {outcome} after {about(seconds)}")

    def note(self, text: str) -> None:
        self._bars.console.print(text, markup=False, highlight=False)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()


def display_for(stream: TextIO, *, quiet: bool = False) -> Display:
    """Bars when ``stream`` is a terminal, lines otherwise, nothing when quiet."""
    if quiet:
        return Silent()
    return RichBars(stream) if stream.isatty() else Lines(stream)


def about(seconds: float) -> str:
    """``0.4 s``, ``12 s``, ``4 min 12 s``, ``2 h 05 min``."""
    from ..reports.writing import duration

    return duration(seconds)

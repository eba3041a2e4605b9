"""Follows a pickle's instructions without executing anything, and says what it would do.

A pickle program has no branches, so that following its stack and memo gives exactly the names it reaches,
however they are assembled. What cannot be followed is refused.
"""

from __future__ import annotations

import io
import pickletools
from dataclasses import dataclass, field
from typing import Literal

from .pickle_names import ALLOWED, BUILDABLE, CALLABLE, is_harmful

MAX_INSTRUCTIONS = 20_000_000

_RENAMED = {"__builtin__": "builtins", "copy_reg": "copyreg", "cPickle": "pickle"}
"""Python 2's module names, which every loader of protocols 0..2 translates."""

Kind = Literal["mark", "text", "global", "result", "list", "dict", "set", "storage", "other"]


@dataclass(frozen=True, slots=True)
class Value:
    """What is known of one stack entry: a text's content, a global's name, the function whose result it is."""

    kind: Kind
    name: str = ""


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a pickle is refused; harmful when it reaches a name that is known to run code."""

    text: str
    harmful: bool = False


@dataclass(slots=True)
class Trace:
    """What following one pickle found: names used, reasons to refuse it, and where it ended."""

    names: list[str] = field(default_factory=list)
    reasons: list[Reason] = field(default_factory=list)
    end: int = 0


class _MalformedError(Exception):
    pass


def follow(content: bytes, start: int = 0, allowed: frozenset[str] = ALLOWED) -> Trace:
    """Follows the pickle that starts at ``start``; every name outside ``allowed`` is a reason to refuse it."""
    machine = _Machine(allowed)
    stream = io.BytesIO(content)
    stream.seek(start)
    ended = False
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
            if count > MAX_INSTRUCTIONS:
                raise _MalformedError(f"more than {MAX_INSTRUCTIONS:,} instructions")
            machine.step(opcode, argument)
            ended = opcode.name == "STOP"
    except _MalformedError as error:
        machine.refuse(f"malformed pickle: {error}")
    except Exception as error:
        machine.refuse(f"truncated or malformed pickle ({str(error)[:80] or type(error).__name__})")
    if not ended and not machine.trace.reasons:
        machine.refuse("the pickle has no end")
    machine.trace.end = stream.tell()
    return machine.trace


class _Machine:
    """The stack and memo of an unpickler, holding descriptions instead of objects."""

    def __init__(self, allowed: frozenset[str]) -> None:
        self.allowed = allowed
        self.stack: list[Value] = []
        self.memo: dict[int, Value] = {}
        self.trace = Trace()

    def step(self, opcode: pickletools.OpcodeInfo, argument: object) -> None:
        special = _SPECIAL.get(opcode.name)
        if special is not None:
            special(self, argument)
        elif opcode.name in _GETS:
            self.push(self.recall(argument))
        elif opcode.name in _PUTS:
            self.memo[_index(argument)] = self.top()
        elif opcode.name in _TEXTS:
            self.push(Value("text", str(argument)))
        else:
            self.plain(opcode)

    def plain(self, opcode: pickletools.OpcodeInfo) -> None:
        """Instructions that only move values, by pickletools' own table."""
        if pickletools.markobject in opcode.stack_before:
            self.pop_to_mark()
            below = opcode.stack_before.index(pickletools.markobject)
        else:
            below = len(opcode.stack_before)
        for _ in range(below):
            self.pop()
        for after in opcode.stack_after:
            self.push(Value(_CONTAINERS.get(after.name, "other")))

    def push(self, value: Value) -> None:
        self.stack.append(value)

    def pop(self) -> Value:
        if not self.stack:
            raise _MalformedError("it takes more from the stack than is there")
        return self.stack.pop()

    def top(self) -> Value:
        if not self.stack or self.stack[-1].kind == "mark":
            raise _MalformedError("it uses a value that is not there")
        return self.stack[-1]

    def pop_to_mark(self) -> list[Value]:
        items: list[Value] = []
        while (value := self.pop()).kind != "mark":
            items.append(value)
        return items[::-1]

    def recall(self, argument: object) -> Value:
        value = self.memo.get(_index(argument))
        if value is None:
            raise _MalformedError("it recalls a value that it never stored")
        return value

    def refuse(self, text: str, harmful: bool = False) -> None:
        reason = Reason(text, harmful)
        if reason not in self.trace.reasons:
            self.trace.reasons.append(reason)

    def find(self, module: str, name: str) -> None:
        full = f"{_RENAMED.get(module, module)}.{name}"
        if full not in self.trace.names:
            self.trace.names.append(full)
        if full not in self.allowed:
            self.refuse(f"it uses {full}, which is not on the list of names that weights need", is_harmful(full))
        self.push(Value("global", full))

    def global_(self, argument: object) -> None:
        module, _, name = str(argument).partition(" ")
        self.find(module, name)

    def stack_global(self, _: object) -> None:
        name, module = self.pop(), self.pop()
        if name.kind == "text" and module.kind == "text":
            self.find(module.name, name.name)
        else:
            self.refuse("it computes the name of what it imports", harmful=True)
            self.push(Value("other"))

    def inst(self, argument: object) -> None:
        self.pop_to_mark()
        self.global_(argument)
        self.refuse(f"it calls {self.pop().name} by an instruction that weights never use (INST)")
        self.push(Value("other"))

    def obj(self, _: object) -> None:
        items = self.pop_to_mark()
        self.refuse(
            f"it calls {_called(items[0]) if items else 'nothing'} by an instruction that weights never use (OBJ)"
        )
        self.push(Value("other"))

    def extension(self, _: object) -> None:
        self.refuse("it uses the extension registry (EXT), whose names cannot be known", harmful=True)
        self.push(Value("other"))

    def reduce(self, _: object) -> None:
        self.pop()
        self.call(self.pop())

    def newobj_ex(self, _: object) -> None:
        self.pop()
        self.reduce(None)

    def call(self, function: Value) -> None:
        if function.kind != "global":
            self.refuse(f"it calls {_called(function)}", harmful=True)
        elif function.name in self.allowed and function.name not in CALLABLE:
            self.refuse(f"it calls {function.name}, which may only be named")
        self.push(Value("result", function.name))

    def build(self, _: object) -> None:
        self.pop()
        target = self.top()
        if target.kind != "result" or target.name not in BUILDABLE:
            self.refuse(f"it sets the state of {_called(target)} (BUILD)", target.name not in self.allowed)

    def persistent(self, _: object) -> None:
        self.pop()
        self.push(Value("storage"))

    def persistent_text(self, _: object) -> None:
        self.push(Value("storage"))

    def append(self, _: object) -> None:
        self.pop()
        self.fill("list")

    def appends(self, _: object) -> None:
        self.pop_to_mark()
        self.fill("list")

    def setitem(self, _: object) -> None:
        self.pop()
        self.pop()
        self.fill("dict")

    def setitems(self, _: object) -> None:
        self.pop_to_mark()
        self.fill("dict")

    def additems(self, _: object) -> None:
        self.pop_to_mark()
        self.fill("set")

    def fill(self, kind: Kind) -> None:
        """APPEND, SETITEM and ADDITEMS call methods of their target, which must be a plain container."""
        target = self.top()
        plain = target.kind == kind or (kind == "dict" and target.name in _DICTS and target.kind == "result")
        if not plain:
            self.refuse(
                f"it fills {_called(target)} as if it were a {kind}", target.kind not in ("list", "dict", "set")
            )

    def dup(self, _: object) -> None:
        self.push(self.top())

    def memoize(self, _: object) -> None:
        self.memo[len(self.memo)] = self.top()

    def buffer(self, _: object) -> None:
        self.refuse("it expects buffers from outside the file")
        self.push(Value("other"))

    def stop(self, _: object) -> None:
        self.pop()


def _called(value: Value) -> str:
    match value.kind:
        case "global":
            return value.name
        case "result":
            return f"the result of {value.name or 'an unknown call'}"
        case kind:
            return f"a value that is no function ({kind})"


def _index(argument: object) -> int:
    if not isinstance(argument, int):
        raise _MalformedError("a memo index is no number")
    return argument


_DICTS = frozenset({"collections.OrderedDict", "collections.Counter"})
_CONTAINERS: dict[str, Kind] = {"mark": "mark", "list": "list", "dict": "dict", "set": "set"}
_GETS = frozenset({"GET", "BINGET", "LONG_BINGET"})
_PUTS = frozenset({"PUT", "BINPUT", "LONG_BINPUT"})
_TEXTS = frozenset(
    {"STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"}
)
_SPECIAL = {
    "GLOBAL": _Machine.global_,
    "STACK_GLOBAL": _Machine.stack_global,
    "INST": _Machine.inst,
    "OBJ": _Machine.obj,
    "EXT1": _Machine.extension,
    "EXT2": _Machine.extension,
    "EXT4": _Machine.extension,
    "REDUCE": _Machine.reduce,
    "NEWOBJ": _Machine.reduce,
    "NEWOBJ_EX": _Machine.newobj_ex,
    "BUILD": _Machine.build,
    "PERSID": _Machine.persistent_text,
    "BINPERSID": _Machine.persistent,
    "APPEND": _Machine.append,
    "APPENDS": _Machine.appends,
    "SETITEM": _Machine.setitem,
    "SETITEMS": _Machine.setitems,
    "ADDITEMS": _Machine.additems,
    "DUP": _Machine.dup,
    "MEMOIZE": _Machine.memoize,
    "NEXT_BUFFER": _Machine.buffer,
    "STOP": _Machine.stop,
}

"""A pickle read as data: nothing in it is imported, called or made.

In: the bytes of a pickle. Out: what it holds, with tables, lists, tuples, text and numbers as they are, and all else as
inert marks: the name of what would be imported, of what would be called and with what. A file of its own because a
pickle is a program, and this one follows the program without carrying it out: opcodes are taken one by one from
`pickletools`, on a stack of marks. A table keeps the entries whose keys are text, which are all that is asked for.
"""

import pickletools
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from modernbert.errors import InputError

__all__ = ["Call", "Imported", "Persistent", "read_pickle"]

# A checkpoint's pickle names tensors and settings: some thousands of steps, and a few millions with a tokenizer in it.
MOST_BYTES, MOST_STEPS = 256 * 2**20, 10_000_000
_TABLES = ("collections.OrderedDict", "builtins.dict", "__builtin__.dict")


@dataclass(frozen=True, eq=False, repr=False)
class Imported:
    """What a pickle would import, by its name."""

    name: str


@dataclass(frozen=True, eq=False, repr=False)
class Call:
    """What a pickle would call or make, by name, and with what."""

    name: str
    args: Any


@dataclass(frozen=True, eq=False, repr=False)
class Persistent:
    """What a pickle refers to and does not hold."""

    key: Any


def read_pickle(content: bytes) -> Any:
    """Return what a pickle of any protocol holds.

    Raises: InputError if it is damaged, larger than any checkpoint's, or uses what no checkpoint does.
    """
    if len(content) > MOST_BYTES:
        raise InputError(f"the pickle has {len(content):,} bytes, expected at most {MOST_BYTES:,}")
    machine = _Machine()
    try:
        for step, (opcode, argument, _) in enumerate(pickletools.genops(content)):
            if step >= MOST_STEPS:
                raise InputError(f"the pickle has more than {MOST_STEPS:,} steps")
            machine.take(opcode.name, argument)
    except InputError:
        raise
    except (ValueError, struct.error, OverflowError) as error:
        raise InputError(f"the pickle is damaged ({' '.join(str(error).split())[:100]})") from None
    return machine.pop()


class _Machine:
    """The stack that a pickle's steps work on, its marks, and what it has numbered to come back to."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def take(self, name: str, argument: Any) -> None:
        """Follow one step."""
        if name in _LITERALS:
            self.stack.append(argument)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name]())
        elif name in _STEPS:
            _STEPS[name](self, argument)
        elif name not in ("PROTO", "FRAME", "STOP"):
            raise InputError(f"the pickle uses {name}, which no checkpoint does")

    def pop(self) -> Any:
        """Take what lies on top, above the last mark."""
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise InputError("the pickle is damaged (a step takes what is not there)")
        return self.stack.pop()

    def top(self) -> Any:
        """Return what lies on top, above the last mark."""
        value = self.pop()
        self.stack.append(value)
        return value

    def pop_to_mark(self) -> list[Any]:
        """Take all that lies above the last mark, and the mark."""
        if not self.marks:
            raise InputError("the pickle is damaged (a step wants a mark that is not there)")
        start = self.marks.pop()
        values = self.stack[start:]
        del self.stack[start:]
        return values

    def discard(self) -> None:
        """Drop what lies on top: a value, or the mark."""
        if self.marks and self.marks[-1] == len(self.stack):
            self.marks.pop()
        else:
            self.pop()

    def tie(self, count: int) -> None:
        """Put the last few values into a tuple."""
        values = [self.pop() for _ in range(count)]
        self.stack.append(tuple(reversed(values)))

    def remember(self, number: int) -> None:
        """Number what lies on top."""
        if not 0 <= number < MOST_STEPS:
            raise InputError("the pickle is damaged (a number that no checkpoint counts to)")
        self.memo[number] = self.top()

    def recall(self, number: int) -> None:
        """Bring back what was numbered."""
        if number not in self.memo:
            raise InputError("the pickle is damaged (comes back to what it never had)")
        self.stack.append(self.memo[number])

    def extend(self, values: list[Any]) -> None:
        """Add to the list on top; whatever else is there stays as it is."""
        target = self.top()
        if isinstance(target, list):
            target.extend(values)

    def fill(self, values: list[Any]) -> None:
        """Set keys and values in turn in the table on top; whatever else is there stays as it is."""
        if len(values) % 2:
            raise InputError("the pickle is damaged (a key without a value)")
        target = self.top()
        if isinstance(target, dict):
            pairs = zip(values[::2], values[1::2], strict=True)
            target.update((key, value) for key, value in pairs if isinstance(key, str))

    def table(self, values: list[Any]) -> None:
        """Make a table of keys and values in turn."""
        self.stack.append({})
        self.fill(values)

    def name(self, module: Any, name: Any) -> None:
        """Put down what would be imported."""
        if not isinstance(module, str) or not isinstance(name, str):
            raise InputError("the pickle is damaged (imports what is not a name)")
        self.stack.append(Imported(f"{module}.{name}"))

    def call(self, callee: Any, args: Any) -> None:
        """Put down what would be called; of the calls, only that for an empty table is carried out."""
        name = callee.name if isinstance(callee, Imported) else f"a {type(callee).__name__.lower()}"
        self.stack.append({} if name in _TABLES and args == () else Call(name, args))


def _reduce(machine: _Machine, _: Any) -> None:
    args = machine.pop()
    machine.call(machine.pop(), args)


def _new_with_names(machine: _Machine, _: Any) -> None:
    machine.pop()
    _reduce(machine, None)


def _instance(machine: _Machine, argument: str) -> None:
    args = tuple(machine.pop_to_mark())
    machine.call(Imported(argument.replace(" ", ".", 1)), args)


def _object(machine: _Machine, _: Any) -> None:
    values = machine.pop_to_mark()
    if not values:
        raise InputError("the pickle is damaged (makes an object of no class)")
    machine.call(values[0], tuple(values[1:]))


def _named_on_stack(machine: _Machine, _: Any) -> None:
    name = machine.pop()
    machine.name(machine.pop(), name)


def _set_one(machine: _Machine, _: Any) -> None:
    value = machine.pop()
    machine.fill([machine.pop(), value])


_LITERALS = frozenset(
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE "
    "SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8".split()
)
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False, "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": lambda: Call("builtins.set", ()),
}  # fmt: skip
_STEPS: dict[str, Callable[[_Machine, Any], None]] = {
    "MARK": lambda machine, _: machine.marks.append(len(machine.stack)),
    "POP": lambda machine, _: machine.discard(),
    "POP_MARK": lambda machine, _: (machine.pop_to_mark(), None)[1],
    "DUP": lambda machine, _: machine.stack.append(machine.top()),
    "TUPLE": lambda machine, _: machine.stack.append(tuple(machine.pop_to_mark())),
    "TUPLE1": lambda machine, _: machine.tie(1),
    "TUPLE2": lambda machine, _: machine.tie(2),
    "TUPLE3": lambda machine, _: machine.tie(3),
    "LIST": lambda machine, _: machine.stack.append(machine.pop_to_mark()),
    "DICT": lambda machine, _: machine.table(machine.pop_to_mark()),
    "FROZENSET": lambda machine, _: machine.stack.append(Call("builtins.frozenset", tuple(machine.pop_to_mark()))),
    "APPEND": lambda machine, _: machine.extend([machine.pop()]),
    "APPENDS": lambda machine, _: machine.extend(machine.pop_to_mark()),
    "ADDITEMS": lambda machine, _: machine.extend(machine.pop_to_mark()),
    "SETITEM": _set_one,
    "SETITEMS": lambda machine, _: machine.fill(machine.pop_to_mark()),
    "PUT": lambda machine, number: machine.remember(number),
    "BINPUT": lambda machine, number: machine.remember(number),
    "LONG_BINPUT": lambda machine, number: machine.remember(number),
    "MEMOIZE": lambda machine, _: machine.remember(len(machine.memo)),
    "GET": lambda machine, number: machine.recall(number),
    "BINGET": lambda machine, number: machine.recall(number),
    "LONG_BINGET": lambda machine, number: machine.recall(number),
    "GLOBAL": lambda machine, argument: machine.stack.append(Imported(argument.replace(" ", ".", 1))),
    "STACK_GLOBAL": _named_on_stack,
    "REDUCE": _reduce,
    "NEWOBJ": _reduce,
    "NEWOBJ_EX": _new_with_names,
    "INST": _instance,
    "OBJ": _object,
    # What would be set on an object goes nowhere, be it an object of ours or an ordered table's attributes.
    "BUILD": lambda machine, _: (machine.pop(), machine.top(), None)[2],
    "PERSID": lambda machine, key: machine.stack.append(Persistent(key)),
    "BINPERSID": lambda machine, _: machine.stack.append(Persistent(machine.pop())),
}

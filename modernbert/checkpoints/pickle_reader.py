"""Safe reader of pickles: dicts, lists, tuples, strings and numbers are read, imports and calls become inert records.

It interprets the opcodes of `pickletools` and neither imports nor calls anything. `pickle.Unpickler` with an inert
`find_class` would not be enough: it hashes keys of any depth, which overflows the C stack, and allocates a memo of any
index, up to 32 GB for a pickle of ten bytes. Dicts keep entries with string keys only.
"""

import pickletools
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from modernbert.errors import InputError

__all__ = ["Call", "Imported", "Persistent", "read_pickle"]

# A checkpoint's pickle has thousands of opcodes, and a few million with a tokenizer in it.
MAX_BYTES, MAX_OPCODES = 256 * 2**20, 10_000_000
_TABLES = ("collections.OrderedDict", "builtins.dict", "__builtin__.dict")


@dataclass(frozen=True, eq=False, repr=False)
class Imported:
    """The name of an object that the pickle would import."""

    name: str


@dataclass(frozen=True, eq=False, repr=False)
class Call:
    """A call that the pickle would make: the name of the function or class, and its arguments."""

    name: str
    args: Any


@dataclass(frozen=True, eq=False, repr=False)
class Persistent:
    """A reference to an object outside the pickle (a persistent id), such as a storage."""

    key: Any


def read_pickle(content: bytes) -> Any:
    """Return the content of a pickle of any protocol.

    Raises: InputError if it is damaged, too large, or uses an opcode that no checkpoint has.
    """
    if len(content) > MAX_BYTES:
        raise InputError(f"the pickle has {len(content):,} bytes, expected at most {MAX_BYTES:,}")
    machine = _Machine()
    try:
        for step, (opcode, argument, _) in enumerate(pickletools.genops(content)):
            if step >= MAX_OPCODES:
                raise InputError(f"the pickle has more than {MAX_OPCODES:,} opcodes")
            machine.take(opcode.name, argument)
    except InputError:
        raise
    except (ValueError, struct.error, OverflowError) as error:
        raise InputError(f"the pickle is damaged ({' '.join(str(error).split())[:100]})") from None
    return machine.pop()


class _Machine:
    """The pickle machine: a stack, positions of marks on it, and the memo."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def take(self, name: str, argument: Any) -> None:
        """Execute one opcode."""
        if name in _LITERALS:
            self.stack.append(argument)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name]())
        elif name in _STEPS:
            _STEPS[name](self, argument)
        elif name not in ("PROTO", "FRAME", "STOP"):
            raise InputError(f"the pickle uses {name}, which no checkpoint does")

    def pop(self) -> Any:
        """Pop the top of the stack, above the last mark."""
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise InputError("the pickle is damaged (an opcode pops an empty stack)")
        return self.stack.pop()

    def top(self) -> Any:
        """Return the top of the stack, above the last mark."""
        value = self.pop()
        self.stack.append(value)
        return value

    def pop_to_mark(self) -> list[Any]:
        """Pop everything above the last mark, and the mark."""
        if not self.marks:
            raise InputError("the pickle is damaged (an opcode needs a mark)")
        start = self.marks.pop()
        values = self.stack[start:]
        del self.stack[start:]
        return values

    def discard(self) -> None:
        """Drop the top of the stack: a value or a mark."""
        if self.marks and self.marks[-1] == len(self.stack):
            self.marks.pop()
        else:
            self.pop()

    def tie(self, count: int) -> None:
        """Push a tuple of the last `count` values."""
        values = [self.pop() for _ in range(count)]
        self.stack.append(tuple(reversed(values)))

    def remember(self, number: int) -> None:
        """Store the top of the stack in the memo."""
        if not 0 <= number < MAX_OPCODES:
            raise InputError("the pickle is damaged (an index of the memo is too large)")
        self.memo[number] = self.top()

    def recall(self, number: int) -> None:
        """Push a value of the memo."""
        if number not in self.memo:
            raise InputError("the pickle is damaged (an index is not in the memo)")
        self.stack.append(self.memo[number])

    def extend(self, values: list[Any]) -> None:
        """Extend the list on top of the stack; ignore another object."""
        target = self.top()
        if isinstance(target, list):
            target.extend(values)

    def fill(self, values: list[Any]) -> None:
        """Set items of the dict on top of the stack, from alternating keys and values; ignore another object."""
        if len(values) % 2:
            raise InputError("the pickle is damaged (a key without a value)")
        target = self.top()
        if isinstance(target, dict):
            pairs = zip(values[::2], values[1::2], strict=True)
            target.update((key, value) for key, value in pairs if isinstance(key, str))

    def table(self, values: list[Any]) -> None:
        """Push a dict of alternating keys and values."""
        self.stack.append({})
        self.fill(values)

    def name(self, module: Any, name: Any) -> None:
        """Push a record of an import."""
        if not isinstance(module, str) or not isinstance(name, str):
            raise InputError("the pickle is damaged (an import is not a name)")
        self.stack.append(Imported(f"{module}.{name}"))

    def call(self, callee: Any, args: Any) -> None:
        """Push a record of a call; only a call that makes an empty dict is executed."""
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
        raise InputError("the pickle is damaged (an object has no class)")
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
    # The state of an object is dropped.
    "BUILD": lambda machine, _: (machine.pop(), machine.top(), None)[2],
    "PERSID": lambda machine, key: machine.stack.append(Persistent(key)),
    "BINPERSID": lambda machine, _: machine.stack.append(Persistent(machine.pop())),
}

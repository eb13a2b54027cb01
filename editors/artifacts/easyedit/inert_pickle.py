"""Reading files of `torch.save` without executing anything: tensors as they are, everything else as inert stand-ins.

A pickle is a program that may call any function of any module. Here it is interpreted with a stack of its own: no name
is ever looked up, so nothing can be called. Only what `torch.save` writes for tensors has a meaning.
"""

from __future__ import annotations

import math
import pickletools
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from editors.common.archives import UNREADABLE_ZIP, RefusedArchive, checked_sizes
from editors.common.errors import ArtifactError, one_line

# The description of what is in a file; the numbers are beside it. EasyEdit's take some 100 KB and 50,000 instructions.
_LONGEST_PICKLE = 64 * 2**20
_MOST_INSTRUCTIONS = 1_000_000
# More numbers than any tensor has; torch counts them in 64 bits.
_MOST_NUMBERS = 2**48
_MOST_DIMENSIONS = 16
# Records that several names share: T5 and BART name one embedding four times.
_TIMES_SHARED = 4
_DTYPES = {
    "BFloat16Storage": torch.bfloat16,
    "BoolStorage": torch.bool,
    "ByteStorage": torch.uint8,
    "CharStorage": torch.int8,
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
    "ShortStorage": torch.int16,
}


@dataclass(frozen=True)
class Inert:
    """Stands for a class, a function or an object that was not made.

    Args:
        name: "module.name" of the class or function.
        called: whether it stands for what a call would have given.
    """

    name: str
    called: bool = False


@dataclass(frozen=True)
class PickledTensor:
    """A tensor whose numbers have not been read yet.

    Args:
        dtype: of its numbers.
        record: name of the record that holds them.
        numbers: how many the record holds.
        offset: place of its first number in the record.
        size: shape.
        stride: for each dimension the distance of neighbours.
    """

    dtype: torch.dtype
    record: str
    numbers: int
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


class TorchArchive:
    """A file written by `torch.save`, opened without unpickling it.

    Args:
        path: the file.

    Attributes:
        content: what was saved: plain values, `dict`, `list`, `tuple`, `PickledTensor`, and `Inert` for all else.

    Raises:
        ArtifactError: it is no such file, damaged, or not what it seems to be.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            with zipfile.ZipFile(self.path) as file:
                self._sizes = checked_sizes(file, self.path)
                self._root = self._find_root()
                self._require_little_endian(file)
                self.content = interpret(file.read(f"{self._root}data.pkl"))
        except UNREADABLE_ZIP as error:
            raise ArtifactError(f"{self.path} cannot be read as a file of torch.save: {one_line(error)}") from error
        except RefusedArchive as error:
            raise ArtifactError(f"{self.path} is not read, because it {error}") from error

    def _find_root(self) -> str:
        roots = [name.removesuffix("data.pkl") for name in self._sizes if name.endswith("/data.pkl")]
        if len(roots) != 1:
            raise RefusedArchive(f"holds {len(roots)} data.pkl, where torch.save writes one")
        if self._sizes[f"{roots[0]}data.pkl"] > _LONGEST_PICKLE:
            raise RefusedArchive(f"describes its content in more than {_LONGEST_PICKLE:,} bytes")
        return roots[0]

    def _require_little_endian(self, file: zipfile.ZipFile) -> None:
        name = f"{self._root}byteorder"
        if name in self._sizes and file.read(name) != b"little":
            raise RefusedArchive("was written on a big-endian machine")

    def tensor(self, pickled: PickledTensor) -> Tensor:
        """The numbers of a tensor.

        Raises:
            ArtifactError: its record is missing, or of another length.
        """
        name = f"{self._root}data/{pickled.record}"
        wanted = pickled.numbers * pickled.dtype.itemsize
        if self._sizes.get(name) != wanted:
            raise ArtifactError(f"{self.path}: {name} has {self._sizes.get(name)} bytes, wanted {wanted}")
        try:
            with zipfile.ZipFile(self.path) as file:
                data = bytearray(file.read(name))
        except (OSError, zipfile.BadZipFile) as error:
            raise ArtifactError(f"{self.path} is damaged: {error}") from error
        if not math.prod(pickled.size):
            return torch.empty(pickled.size, dtype=pickled.dtype)
        flat = torch.frombuffer(data, dtype=pickled.dtype)
        return flat.as_strided(pickled.size, pickled.stride, pickled.offset).clone()

    def require_no_larger(self, pickled: Iterable[PickledTensor]) -> None:
        """Check that tensors together take no more memory than the file has bytes, a few times over.

        Raises:
            ArtifactError: they do: many names share a record.
        """
        wanted = sum(math.prod(each.size) * each.dtype.itemsize for each in pickled)
        has = self.path.stat().st_size
        if wanted > _TIMES_SHARED * has:
            raise ArtifactError(
                f"{self.path} is not read, because its tensors would take {wanted / 2**20:,.0f} MB, and the file has "
                f"{has / 2**20:,.1f} MB: too many names share a record"
            )


def interpret(pickle: bytes) -> Any:
    """What a pickle describes, with nothing called.

    Raises:
        RefusedArchive: it is malformed, or uses what files of `torch.save` do not.
    """
    machine = _Machine()
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(pickle)):
            if opcode.name == "STOP":
                return machine.stack.pop()
            if count == _MOST_INSTRUCTIONS:
                raise RefusedArchive(f"describes its content in more than {_MOST_INSTRUCTIONS:,} instructions")
            machine.step(opcode.name, argument)
    except (IndexError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise RefusedArchive(f"is malformed: {error}") from error
    raise RefusedArchive("is malformed: it has no end")


class _Machine:
    """The stack and the memory of a pickle that is being interpreted."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self._marks: list[int] = []
        self._memory: dict[int, Any] = {}

    def step(self, name: str, argument: Any) -> None:
        """Take one instruction."""
        if name in _NOTHING:
            return
        if name in _VALUES:
            self.stack.append(argument)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name]())
        elif name in _ACTIONS:
            _ACTIONS[name](self, argument)
        else:
            raise RefusedArchive(f"uses pickle instruction {name}, which torch.save does not write")

    def since_mark(self) -> list[Any]:
        """Take off what was put on the stack since the last mark."""
        start = self._marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def mark(self, _: Any) -> None:
        self._marks.append(len(self.stack))

    def put(self, place: int) -> None:
        self._memory[place] = self.stack[-1]

    def memoize(self, _: Any) -> None:
        self._memory[len(self._memory)] = self.stack[-1]

    def get(self, place: int) -> None:
        self.stack.append(self._memory[place])

    def tuple_of(self, count: int) -> None:
        if len(self.stack) < count:
            raise RefusedArchive("is malformed: its stack is empty")
        items = tuple(self.stack[len(self.stack) - count :])
        del self.stack[len(self.stack) - count :]
        self.stack.append(items)

    def global_name(self, argument: str) -> None:
        self.stack.append(Inert(argument.replace(" ", ".")))

    def stack_global(self, _: Any) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.stack.append(Inert(f"{module}.{name}" if isinstance(name, str) and isinstance(module, str) else "unnamed"))

    def persistent(self, _: Any) -> None:
        self.stack.append(_storage(self.stack.pop()))

    def call(self, _: Any) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        self.stack.append(_called(function, arguments))

    def build(self, _: Any) -> None:
        self.stack.pop()  # the state of an object that was not made

    def append(self, items: list[Any]) -> None:
        if isinstance(self.stack[-1], list):
            self.stack[-1].extend(items)

    def set_items(self, items: list[Any]) -> None:
        if isinstance(self.stack[-1], dict):
            pairs = zip(items[::2], items[1::2], strict=True)
            # Only plain keys: the hash of a tuple in a tuple in a … would overflow the interpreter's own stack.
            self.stack[-1].update((key, value) for key, value in pairs if isinstance(key, str | int | bytes))


@dataclass(frozen=True)
class _Storage:
    """The record that holds a tensor's numbers."""

    dtype: torch.dtype
    record: str
    numbers: int


def _storage(identity: Any) -> Any:
    """What `torch.save` notes for the numbers of a tensor: ("storage", type, record, device, how many)."""
    if not isinstance(identity, tuple) or len(identity) != 5 or identity[0] != "storage":
        raise RefusedArchive("refers to something outside itself")
    _, kind, record, _, numbers = identity
    dtype = _DTYPES.get(kind.name.removeprefix("torch.")) if isinstance(kind, Inert) else None
    if dtype is None or not isinstance(record, str) or not _is_count(numbers):
        raise RefusedArchive("holds numbers of an unknown type")
    return _Storage(dtype, record, numbers)


def _called(function: Any, arguments: Any) -> Any:
    """What a call stands for. Three functions are known, and none is called."""
    name = function.name if isinstance(function, Inert) else type(function).__name__
    if name == "collections.OrderedDict" and arguments == ():
        return {}
    if name == "torch._utils._rebuild_parameter" and isinstance(arguments, tuple) and arguments:
        return arguments[0]
    if name == "torch._utils._rebuild_tensor_v2" and isinstance(arguments, tuple) and len(arguments) >= 4:
        return _tensor(*arguments[:4])
    return Inert(name, called=True)


def _tensor(storage: Any, offset: Any, size: Any, stride: Any) -> PickledTensor:
    """A tensor whose every number lies in its record, and which is not larger than that."""
    if not isinstance(storage, _Storage) or not isinstance(size, tuple) or not isinstance(stride, tuple):
        raise RefusedArchive("holds a malformed tensor")
    if (
        len(size) != len(stride)
        or len(size) > _MOST_DIMENSIONS
        or not all(_is_count(value) for value in (offset, *size, *stride))
    ):
        raise RefusedArchive("holds a malformed tensor")
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    # Without its empty dimensions, too: torch multiplies those of an empty tensor, and they may be huge.
    if math.prod(max(length, 1) for length in size) > _MOST_NUMBERS:
        raise RefusedArchive("holds a tensor that is larger than its numbers")
    if math.prod(size) > storage.numbers or (math.prod(size) and last >= storage.numbers):
        raise RefusedArchive("holds a tensor that is larger than its numbers")
    return PickledTensor(storage.dtype, storage.record, storage.numbers, offset, size, stride)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MOST_NUMBERS


_NOTHING = frozenset({"PROTO", "FRAME"})
# Instructions whose argument is the value.
_VALUES = frozenset(
    {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
    | {"SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "SHORT_BINSTRING", "BINSTRING"}
)
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_SET": list,
}
_ACTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "MARK": _Machine.mark,
    "BINPUT": _Machine.put,
    "LONG_BINPUT": _Machine.put,
    "MEMOIZE": _Machine.memoize,
    "BINGET": _Machine.get,
    "LONG_BINGET": _Machine.get,
    "TUPLE": lambda machine, _: machine.stack.append(tuple(machine.since_mark())),
    "TUPLE1": lambda machine, _: machine.tuple_of(1),
    "TUPLE2": lambda machine, _: machine.tuple_of(2),
    "TUPLE3": lambda machine, _: machine.tuple_of(3),
    "FROZENSET": lambda machine, _: machine.stack.append(machine.since_mark()),
    "GLOBAL": _Machine.global_name,
    "STACK_GLOBAL": _Machine.stack_global,
    "BINPERSID": _Machine.persistent,
    "REDUCE": _Machine.call,
    "NEWOBJ": _Machine.call,
    "BUILD": _Machine.build,
    "APPEND": lambda machine, _: machine.append([machine.stack.pop()]),
    "APPENDS": lambda machine, _: machine.append(machine.since_mark()),
    "ADDITEMS": lambda machine, _: machine.append(machine.since_mark()),
    "SETITEM": lambda machine, _: machine.set_items([machine.stack.pop() for _ in range(2)][::-1]),
    "SETITEMS": lambda machine, _: machine.set_items(machine.since_mark()),
}

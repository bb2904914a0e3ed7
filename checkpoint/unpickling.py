"""A pickle as torch's writer writes `.metadata`, read so that a stranger's can do nothing.

That no class but a few can be made is not enough: an operation may ask for a memory of tens of GB
with five bytes, one tuple that is referred to by the next, and so on, has no end when it is hashed,
and a class that is handed over like an object can be changed for the whole process. So only the
operations that torch's writer uses are there, each one in Python's own unpickler, and those that
hash, call or change something look at what they are given.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from dataclasses import is_dataclass
from enum import Enum
from typing import Any, ClassVar

_OPERATIONS = b"".join(
    (
        pickle.PROTO, pickle.FRAME, pickle.STOP, pickle.MARK, pickle.MEMOIZE, pickle.BINGET,
        pickle.LONG_BINGET, pickle.NONE, pickle.NEWTRUE, pickle.NEWFALSE, pickle.BININT,
        pickle.BININT1, pickle.BININT2, pickle.LONG1, pickle.SHORT_BINUNICODE, pickle.BINUNICODE,
        pickle.EMPTY_TUPLE, pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3,
        pickle.EMPTY_LIST, pickle.APPEND, pickle.APPENDS, pickle.EMPTY_DICT, pickle.STACK_GLOBAL,
    )
)  # fmt: skip
_MOST_DIMENSIONS = 64


class PlainUnpickler(pickle._Unpickler):
    """Reads one pickle; `find_class` is the subclass's. `load` raises almost anything where the
    pickle is malformed.

    Args:
        content: the whole pickle, so that no length in it can ask for more than there is.
    """

    stack: list[Any]
    append: Callable[[Any], None]
    pop_mark: Callable[[], list[Any]]

    def __init__(self, content: bytes) -> None:
        super().__init__(io.BytesIO(content))

    def _reduce(self) -> None:
        arguments = self.stack.pop()
        if self.stack[-1] is not enum_member:  # which looks at its arguments by itself
            _plain(arguments)
        self.stack[-1] = self.stack[-1](*arguments)

    def _new_object(self) -> None:
        arguments = self.stack.pop()
        kind = self.stack.pop()
        self.append(kind.__new__(kind, *_plain(arguments)))

    def _build(self) -> None:
        state = self.stack.pop()
        built: Any = self.stack[-1]
        if isinstance(built, type) or not is_dataclass(type(built)):
            raise pickle.UnpicklingError(f"it changes a {type(built).__name__}")
        if isinstance(state, dict):
            vars(built).update(state)
        else:
            built.__setstate__(state)

    def _set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        _set(self.stack[-1], key, value)

    def _set_items(self) -> None:
        items = self.pop_mark()
        for key, value in zip(items[::2], items[1::2], strict=True):
            _set(self.stack[-1], key, value)

    dispatch: ClassVar[dict[int, Any]] = {
        **{code: pickle._Unpickler.dispatch[code] for code in _OPERATIONS},
        pickle.REDUCE[0]: _reduce,
        pickle.NEWOBJ[0]: _new_object,
        pickle.BUILD[0]: _build,
        pickle.SETITEM[0]: _set_item,
        pickle.SETITEMS[0]: _set_items,
    }


def enum_member(kind: Any, name: Any) -> Any:
    """A member of an Enum by its name. Python 3.11.0 to 3.11.3, Debian 12's for one, pickle it as
    `getattr(kind, name)`; `find_class` gives this in the place of `getattr`.

    Raises:
        pickle.UnpicklingError: it is asked for anything else.
    """
    if not (isinstance(kind, type) and issubclass(kind, Enum) and isinstance(name, str)):
        raise pickle.UnpicklingError("it asks for builtins.getattr")
    if name not in kind.__members__:
        raise pickle.UnpicklingError(f"it asks for {kind.__name__}.{name}")
    return kind.__members__[name]


def _set(target: Any, key: Any, value: Any) -> None:
    if type(target) is not dict:
        raise pickle.UnpicklingError(f"it has a {type(target).__name__} for a dict")
    if not isinstance(key, str):  # an object, hashed by its fields
        _plain(vars(key).values())
    target[key] = value


def _plain(values: Any) -> Any:
    """The values, if calling or hashing something with them can cost no more than they are long."""
    for value in values:
        if isinstance(value, tuple):
            if len(value) > _MOST_DIMENSIONS or not all(isinstance(item, int) for item in value):
                raise pickle.UnpicklingError("it holds something else than sizes in a tuple")
        elif value is not None and not isinstance(value, str | int):
            raise pickle.UnpicklingError(f"it makes an object of a {type(value).__name__}")
    return values

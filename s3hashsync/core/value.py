"""Values: dataclasses that nobody changes.

Decides that "frozen" is the type checker's business: for what is made once for every file, enforcing it at run time would make
each object seven times as dear. What is made less often is a plain frozen dataclass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar, dataclass_transform

_T = TypeVar("_T")


@dataclass_transform(frozen_default=True)
def value(cls: type[_T]) -> type[_T]:
    """A slotted dataclass, equal and hashable by its fields."""
    return dataclass(slots=True, unsafe_hash=True)(cls)

"""From YAML nodes to plain values, each with its place; variables are replaced, the unwanted is reported.

Decides which parts of YAML are taken: text, numbers, booleans, lists, groups, anchors, merge keys; no tags.
Knows nothing of the keys of `backup.yaml`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import yaml
from yaml.constructor import SafeConstructor

from s3hashsync.config.faults import FaultLog, KeyPath, Place, Value
from s3hashsync.config.interpolation import expand
from s3hashsync.config.syntax import MAX_DEPTH, Node

MAX_VALUES = 50_000
_CORE = "tag:yaml.org,2002:"
_MERGE = _CORE + "merge"
_KINDS = {"bool": "a boolean", "int": "a whole number", "float": "a number"}
# Dates stay the text that they are written as: no key of ours is one.
_TEXTS = frozenset(_CORE + kind for kind in ("str", "timestamp", "value", "merge"))


class TooLargeError(Exception):
    """Aliases blow the file up, or contain themselves: reported already, and nothing more can be said."""


def to_value(root: Node, environ: Mapping[str, str], log: FaultLog) -> Value:
    return _Conversion(environ, log).value(root, ())


class _Conversion:
    def __init__(self, environ: Mapping[str, str], log: FaultLog) -> None:
        self._environ = environ
        self._log = log
        self._count = 0
        self._scalars = SafeConstructor()
        # By node: an alias must not make its text again, or a small file could fill the memory.
        self._texts: dict[int, str] = {}

    def value(self, node: Node, path: KeyPath) -> Value:
        self._bound(node, path, len(path))
        self._log.places.values[path] = _place(node)
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, path)
        if isinstance(node, yaml.SequenceNode) and node.tag == _CORE + "seq":
            return [self.value(item, (*path, number)) for number, item in enumerate(node.value)]
        if isinstance(node, yaml.MappingNode) and node.tag == _CORE + "map":
            return self._mapping(node, path)
        self._refuse_tag(node, path)
        return None

    def _bound(self, node: Node, path: KeyPath, depth: int) -> None:
        self._count += 1
        if self._count > MAX_VALUES:
            message = f"more than {MAX_VALUES} values, counting what aliases repeat"
        elif depth > MAX_DEPTH:
            message = "the nesting is too deep, or an alias contains itself"
        else:
            return
        self._log.at_place(path[:2], _place(node), message, None)
        raise TooLargeError(message)

    def _mapping(self, node: yaml.MappingNode, path: KeyPath) -> Value:
        group: dict[str, Value] = {}
        own: dict[str, int] = {}
        merges: list[Node] = []
        for key_node, value_node in node.value:
            if key_node.tag == _MERGE:
                merges.append(value_node)
                continue
            name = self._key(key_node, path)
            if name is None:
                continue
            if name in own:
                self._twice((*path, name), _place(key_node), own[name])
                continue
            own[name] = key_node.start_mark.line + 1
            self._put(group, path, key_node, value_node)
        for merged in merges:
            for key_node, value_node in self._merged(merged, path, len(path)):
                if key_node.value not in group:
                    self._put(group, path, key_node, value_node)
        return group

    def _put(self, group: dict[str, Value], path: KeyPath, key_node: Node, value_node: Node) -> None:
        name: str = key_node.value
        self._log.places.keys[(*path, name)] = _place(key_node)
        group[name] = self.value(value_node, (*path, name))

    def _key(self, key_node: Node, path: KeyPath) -> str | None:
        """A key as it is written: `on:` and `1:` are then unknown keys, and not a boolean and a number."""
        if isinstance(key_node, yaml.ScalarNode) and key_node.tag.startswith(_CORE):
            return str(key_node.value)
        message = "a key must be a plain text"
        self._log.at_place((*path, "?"), _place(key_node), message, "put it in quotes")
        return None

    def _twice(self, path: KeyPath, place: Place, first: int) -> None:
        message = f"the key is given twice, first in line {first}"
        self._log.at_place(path, place, message, "take one of the two out")

    def _merged(self, node: Node, path: KeyPath, depth: int) -> Iterator[tuple[Node, Node]]:
        """The pairs that `<<` brings in. What comes first wins: a group's own keys before those it merges."""
        self._bound(node, path, depth)
        if isinstance(node, yaml.SequenceNode) and depth == len(path):
            for item in node.value:
                yield from self._merged(item, path, depth + 1)
        elif isinstance(node, yaml.MappingNode):
            pairs = [(key, value) for key, value in node.value if isinstance(key, yaml.ScalarNode)]
            yield from ((key, value) for key, value in pairs if key.tag != _MERGE)
            for key, value in pairs:
                if key.tag == _MERGE:
                    yield from self._merged(value, path, depth + 1)
        else:
            message = "<< takes the alias of a group of keys, or a list of such aliases"
            self._log.at_place((*path, "<<"), _place(node), message, "write <<: *name")

    def _scalar(self, node: yaml.ScalarNode, path: KeyPath) -> Value:
        kind = node.tag.removeprefix(_CORE)
        if node.tag in _TEXTS:
            return self._text(node, path)
        try:
            if kind == "null":
                return None
            if kind == "bool":
                return bool(self._scalars.construct_yaml_bool(node))
            if kind == "int":
                return int(self._scalars.construct_yaml_int(node))
            if kind == "float":
                return self._finite(float(self._scalars.construct_yaml_float(node)), path)
        except (ValueError, KeyError, IndexError, OverflowError):
            self._log.at_value(path, f"{node.value[:40]!r} is not {_KINDS[kind]}")
            return None
        self._refuse_tag(node, path)
        return None

    def _finite(self, number: float, path: KeyPath) -> Value:
        if math.isfinite(number):
            return number
        self._log.at_value(path, "is not a finite number")
        return None

    def _text(self, node: yaml.ScalarNode, path: KeyPath) -> Value:
        if id(node) not in self._texts:
            text: str = node.value
            # Neither a path nor an object's key can hold them; they come from escapes alone.
            if any(character == "\0" or "\ud800" <= character <= "\udfff" for character in text):
                self._log.at_value(path, "holds a character that no text may hold: \\0 or half a surrogate pair")
                return None
            self._texts[id(node)] = expand(text, self._environ, lambda message, hint: self._log.at_value(path, message, hint))
        return self._texts[id(node)]

    def _refuse_tag(self, node: Node, path: KeyPath) -> None:
        tag = node.tag.replace(_CORE, "!!")
        hint = "put a text that begins with ! in quotes" if not tag.startswith("!!") else "take the tag out"
        self._log.at_value(path, f"the YAML tag {tag[:60]} is not taken", hint)


def _place(node: Node) -> Place:
    written = node.value if isinstance(node, yaml.ScalarNode) else None
    return Place(node.start_mark.line + 1, node.start_mark.column + 1, written)

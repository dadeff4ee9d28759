"""Read YAML from anyone: plain values, in bounded time and memory.

Aliases may make a file of a kilobyte stand for a billion values, and the constructors of PyYAML raise many types for
odd scalars.
"""

from __future__ import annotations

from typing import Any

import yaml

MAX_BYTES = 1 << 20
# Values in a file, counting what an alias stands for each time; a recipe has hundreds.
_MAX_NODES, _MAX_DEPTH = 10_000, 50
_MAX_NUMBER = 100  # characters


class _Loader(yaml.SafeLoader):
    """The safe loader, with limits on nodes, depth and numbers. Keys that occur twice are errors."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._n_nodes, self._depth = 0, 0
        self._sizes: dict[str, int] = {}  # nodes below each anchor

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        anchor, before = event.anchor, self._n_nodes
        if isinstance(event, yaml.AliasEvent) and anchor in self.anchors:
            if anchor not in self._sizes:
                raise _problem(f"the alias *{anchor} refers to what contains it", event)
            self._n_nodes += self._sizes[anchor]
        self._n_nodes += 1
        self._depth += 1
        if self._n_nodes > _MAX_NODES or self._depth > _MAX_DEPTH:
            raise _problem(f"more than {_MAX_NODES} values, or nested deeper than {_MAX_DEPTH}", event)
        node = super().compose_node(parent, index)
        self._depth -= 1
        if anchor is not None and not isinstance(event, yaml.AliasEvent):
            self._sizes[anchor] = self._n_nodes - before
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        known: set[str] = set()
        for key, _ in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) and key.value != "<<" else None
            if name in known:
                raise _problem(f"the key {name[:80]!r} occurs twice", key)
            if name is not None:
                known.add(name)
        return node

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except yaml.YAMLError:
            raise
        except Exception as error:  # the constructors of scalars raise many types
            raise _problem(str(error) or type(error).__name__, node) from error

    def construct_scalar(self, node: Any) -> Any:
        if len(node.value) > _MAX_NUMBER and node.tag.rpartition(":")[2] in ("int", "float", "timestamp"):
            raise _problem(f"a number of {len(node.value)} characters", node)
        value = super().construct_scalar(node)
        try:
            value.encode()
        except UnicodeEncodeError:
            raise _problem("text that is not Unicode", node) from None
        return value


def _problem(text: str, place: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=text, problem_mark=place.start_mark)


def parse_yaml(text: str) -> Any:
    """The value of a YAML document.

    Raises `yaml.YAMLError` for everything that is not a plain value: malformed text, tags of Python, odd scalars, keys
    that occur twice, and documents of more than 10,000 values.

    >>> parse_yaml("a: [1, 2.5]")
    {'a': [1, 2.5]}
    """
    if len(text) > MAX_BYTES:
        raise yaml.YAMLError(f"{len(text)} characters; at most {MAX_BYTES} are read")
    loader = _Loader(text)
    try:
        return loader.get_single_data()
    except (ValueError, OverflowError) as error:
        raise yaml.YAMLError("an escape that stands for no character") from error
    finally:
        loader.dispose()

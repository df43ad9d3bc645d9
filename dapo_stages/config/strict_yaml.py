"""Strict YAML: plain values, no duplicate keys, no recursive or exponentially large aliases."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import yaml

_DEEPEST = 50  # levels
_MOST = 100_000  # values, counting those behind an alias every time it is used


def parse(text: str) -> Any:
    """Parse a document. Raises yaml.YAMLError for anything wrong with it."""
    import yaml

    loader = _loader()(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _measure(node, 1, {})
        return loader.construct_document(node)
    except RecursionError:
        raise yaml.YAMLError("nested too deeply") from None
    finally:
        loader.dispose()


def _measure(node: yaml.Node, level: int, known: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """How many values a node expands to, and how many levels deep; refuses too many, and recursive aliases."""
    import yaml

    if id(node) not in known:
        inside: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            inside = [child for pair in node.value for child in pair]
        elif isinstance(node, yaml.SequenceNode):
            inside = node.value
        if level <= _DEEPEST:
            sizes = [_measure(child, level + 1, known) for child in inside]
            known[id(node)] = 1 + sum(count for count, _ in sizes), 1 + max((high for _, high in sizes), default=0)
    count, high = known.get(id(node), (1, _DEEPEST + 1))
    if high > _DEEPEST:
        raise yaml.MarkedYAMLError(problem="nested too deeply, or recursive", problem_mark=node.start_mark)
    if count > _MOST:
        raise yaml.MarkedYAMLError(problem=f"more than {_MOST} values", problem_mark=node.start_mark)
    return count, high


def _loader() -> type[yaml.SafeLoader]:
    """YAML's safe loader, made stricter: by itself it keeps the last of two equal keys, and raises all kinds of errors
    for a value that does not fit its tag."""
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            if isinstance(node, yaml.MappingNode):
                keys = [key.value for key, _ in node.value]
                twice = next((key for key in keys if keys.count(key) > 1), None)
                if twice is not None:
                    raise yaml.constructor.ConstructorError(
                        problem=f"duplicate key `{twice}`", problem_mark=node.start_mark
                    )
            return super().construct_mapping(node, deep)

        def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
            try:
                return super().construct_object(node, deep)
            except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
                kind = node.tag.rpartition(":")[2]
                raise yaml.constructor.ConstructorError(
                    problem=f"not a valid {kind} ({error})", problem_mark=node.start_mark
                ) from None

    return Loader

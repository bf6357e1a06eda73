"""How is YAML read that a person wrote?  As the API server reads it: nothing given twice, no dates made of text."""

from typing import Any

import yaml


class StrictLoader(yaml.SafeLoader):
    """A date is text, and a key given twice is a mistake: yaml.constructor.ConstructorError says which, and where."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """PyYAML's own, with an error of its kind where a stated tag does not suit the value."""
        try:
            return super().construct_object(node, deep)
        except (ValueError, TypeError, AttributeError, LookupError) as error:  # PyYAML's own do not check a stated tag
            shown = str(node.value)[:40]
            raise yaml.constructor.ConstructorError(
                None, None, f"{shown!r} is no {node.tag.rpartition(':')[2]}", node.start_mark
            ) from error

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """PyYAML's own, where no key is there twice."""
        seen = set()
        for key_node, _ in node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
            if key is not None and key in seen and key != "<<":
                right = "remove one"
                if key == "apiVersion":
                    right += ", or write a line '---' between two objects"
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key!r} is given twice in one mapping: {right}", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


StrictLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}

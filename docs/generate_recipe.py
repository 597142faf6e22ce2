"""Write the table of fields in docs/distil.md from the recipe's models.

python docs/generate_recipe.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from overproof.core.recipe import Recipe

PAGE = Path(__file__).parent / "distil.md"
BEGIN = "<!-- fields: begin (generated) -->"
END = "<!-- fields: end -->"
LIMITS = (
    ("exclusiveMinimum", ">"),
    ("minimum", "≥"),
    ("exclusiveMaximum", "<"),
    ("maximum", "≤"),
)


def page(text: str) -> str:
    """The page with its table made anew.

    Raises:
        SystemExit: the page has no place for the table.
    """
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"error: {PAGE.name} lacks the lines {BEGIN} and {END}")
    return f"{head}{BEGIN}\n{table()}\n{END}{tail}"


def table() -> str:
    """One row a field, sections in the order of the models."""
    schema = Recipe.model_json_schema()
    lines = ["| field | values | default | meaning |", "|---|---|---|---|"]
    for place, field, required in fields(schema, schema, ""):
        default = "**required**" if required else _code(field.get("default"))
        meaning = field.get("description", "")
        lines.append(_line([f"`{place}`", _values(field), default, meaning]))
    return "\n".join(lines)


def fields(
    schema: Any, node: Any, prefix: str, known: dict[str, str] | None = None
) -> list[tuple[str, Any, bool]]:
    """Dotted place, schema, and whether it must be given, of each field that holds a value.

    Args:
        known: where each choice of kinds was listed, so that it is listed once.
    """
    known = {} if known is None else known
    found: list[tuple[str, Any, bool]] = []
    for name, field in node["properties"].items():
        if "$ref" in field:
            found += fields(schema, _definition(schema, field), f"{prefix}{name}.", known)
        elif "oneOf" in field:
            listed = known.setdefault(str(field["oneOf"]), prefix + name)
            own = _kinds(schema, field, f"{prefix}{name}.")
            if listed != prefix + name:
                meaning = f"as in `{listed}`, with the same fields"
                own = [
                    (place, {**kind, "description": meaning}, must) for place, kind, must in own
                ][:1]
            found += own
        elif section := _optional(field):
            node_of = _definition(schema, section)
            meaning = node_of["description"][0].lower() + node_of["description"][1:].rstrip(".")
            found.append((prefix + name, {**field, "description": meaning}, False))
            found += fields(schema, node_of, f"{prefix}{name}.", known)
        else:
            found.append((prefix + name, field, name in node.get("required", [])))
            if "$ref" in field.get("items", {}):
                inner = _definition(schema, field["items"])
                found += fields(schema, inner, f"{prefix}{name}[].", known)
    return found


def _optional(field: Any) -> Any:
    """A section that may be left out; None: the field is something else."""
    return next((one for one in field.get("anyOf", []) if "$ref" in one), None)


def _definition(schema: Any, field: Any) -> Any:
    return schema["$defs"][field["$ref"].rpartition("/")[2]]


def _kinds(schema: Any, field: Any, prefix: str) -> list[tuple[str, Any, bool]]:
    """A section of several kinds: which there are, and then the fields of each."""
    kinds = {
        node["properties"]["kind"]["const"]: node
        for node in (_definition(schema, one) for one in field["oneOf"])
    }
    meaning = "; ".join(
        f"`{kind}`: {node['description'].rstrip('.')}" for kind, node in kinds.items()
    )
    default = field.get("default", {}).get("kind")
    choice = {"enum": list(kinds), "default": default, "description": meaning}
    found = [(f"{prefix}kind", choice, default is None)]
    for kind, node in kinds.items():
        for place, inner, required in fields(schema, node, prefix):
            if place != f"{prefix}kind":
                meaning = f"of `{kind}`: {inner['description']}"
                found.append((place, inner | {"description": meaning}, required))
    return found


def _values(field: Any) -> str:
    options = [one for one in field.get("anyOf", [field]) if one.get("type") != "null"]
    shown = [_kind(one) for one in options]
    return " or ".join([*shown, "null"] if "anyOf" in field else shown)


def _kind(field: Any) -> str:
    if "$ref" in field:
        return "section"
    if "enum" in field or "const" in field:
        return ", ".join(_code(value) for value in field.get("enum", [field.get("const")]))
    if field.get("type") == "array":
        return f"list of {_kind(field['items'])}"
    limits = [f"{sign} {field[key]:g}" for key, sign in LIMITS if key in field]
    if field.get("type") == "integer":  # the limit that a reader thinks of: 2147483648 is 2**31
        limits = [limit.replace("< 2.14748e+09", "< 2³¹") for limit in limits]
    if "pattern" in field:
        limits.append(f"`{field['pattern']}`")
    return " ".join(
        [{"string": "text"}.get(field["type"], field["type"]), ", ".join(limits)]
    ).strip()


def _code(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, dict):
        return f"`{{{', '.join(f'{key}: {one}' for key, one in value.items())}}}`"
    if isinstance(value, list):
        return ", ".join(_code(one) for one in value)
    return f"`{value}`"


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")

"""Whether a schema may take the place of one that was published.

    breaks(old, new, Way.TOLD)  # ["holder: it is gone", …]; empty: nobody who relied on the old one notices

What Leasehold tells may gain fields that need not be there, values in a list of values, and kinds of a thing that says
which it is (by `type`); else it stays: the old messages are in logs, and readers were written for them. What it is
asked may also be bounded less, and fields that it gains may have rules.
"""

from typing import Any, Final

from leasehold.services.describing.messages import Way

Schema = dict[str, Any]

_NOTES: Final = frozenset({"$schema", "$id", "$defs", "title", "description", "format"})
"""What binds nobody."""
_LOW: Final = ("minimum", "minLength", "minItems")
_HIGH: Final = ("maximum", "maxLength", "maxItems")
_BOUNDS: Final = (*_LOW, *_HIGH, "pattern")
_KNOWN: Final = _NOTES | {*_BOUNDS, "$ref", "type", "const", "enum", "anyOf", "default", "properties", "required"}
_ALL_KNOWN: Final = _KNOWN | {"additionalProperties", "items"}


def breaks(old: Schema, new: Schema, way: Way) -> list[str]:
    """What would break somebody, each with the path of the field."""
    return _Comparison(old, new, way).found


def bare(schema: Any) -> Any:
    """A schema without what only people read, its keys in order."""
    if isinstance(schema, list):
        return [bare(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    found = {}
    for key, value in sorted(schema.items()):
        if key in ("properties", "$defs"):
            found[key] = {name: bare(each) for name, each in sorted(value.items())}
        elif key not in ("title", "description"):
            found[key] = bare(value)
    return found


class _Comparison:
    def __init__(self, old: Schema, new: Schema, way: Way) -> None:
        self.found: list[str] = []
        self._old_root, self._new_root, self._way = old, new, way
        self._seen: set[tuple[str, str]] = set()
        self._compare("", old, new)

    def _say(self, path: str, what: str) -> None:
        self.found.append(f"{path or 'it'}: {what}")

    def _compare(self, path: str, old: Schema, new: Schema, *, was_needed: bool = False) -> None:
        names = (old.get("$ref", ""), new.get("$ref", ""))
        if all(names):
            if names in self._seen:
                return
            self._seen.add(names)
        old, new = _resolved(self._old_root, old), _resolved(self._new_root, new)
        for keyword in sorted((old.keys() | new.keys()) - _ALL_KNOWN):
            if old.get(keyword) != new.get(keyword) and not self._is_rule_of_new_fields(keyword, old, new):
                self._say(path, f"{keyword} is not what it was")
        if old.get("type") != new.get("type"):
            self._say(path, f"it was {old.get('type')}, and is {new.get('type')}")
            return
        if old.get("default") != new.get("default") and not (was_needed and self._way == Way.ASKED):
            self._say(path, f"left out, it meant {old.get('default')!r}, and means {new.get('default')!r}")
        self._compare_values(path, old, new)
        self._compare_bounds(path, old, new)
        self._compare_alternatives(path, old.get("anyOf", []), new.get("anyOf", []))
        self._compare_fields(path, old, new)
        if "items" in old or "items" in new:
            before, after = old.get("items", {}), new.get("items", {})
            # Of a list of fixed places there are no others: `false`.
            if isinstance(before, dict) and isinstance(after, dict):
                self._compare(f"{path}[]", before, after)
            elif before != after:
                self._say(f"{path}[]", f"it was {before}, and is {after}")

    def _is_rule_of_new_fields(self, keyword: str, old: Schema, new: Schema) -> bool:
        """Whether it shuts out only what says fields that were not known before."""
        if self._way == Way.TOLD or keyword not in ("not", "allOf") or keyword in old:
            return False
        rules = [{"not": new["not"]}] if keyword == "not" else new["allOf"]
        return all(_is_of_new_fields(rule["not"], old) if "not" in rule else _held_before(rule, old) for rule in rules)

    def _compare_values(self, path: str, old: Schema, new: Schema) -> None:
        before, after = _values(old), _values(new)
        if before is None and after is not None:
            self._say(path, f"it could be anything, and is one of {sorted(after)}")
        elif before is not None and after is None:
            if self._way == Way.TOLD:
                self._say(path, f"it was one of {sorted(before)}, and can be anything")
        elif before is not None and after is not None and before - after:
            self._say(path, f"it is none of {sorted(before - after)} any more")

    def _compare_bounds(self, path: str, old: Schema, new: Schema) -> None:
        for keyword in _BOUNDS:
            before, after = old.get(keyword), new.get(keyword)
            if before == after:
                continue
            is_wider = after is None or (
                before is not None and ((keyword in _LOW and after < before) or (keyword in _HIGH and after > before))
            )
            if not (is_wider and self._way == Way.ASKED):
                self._say(path, f"{keyword} was {before}, and is {after}")

    def _compare_alternatives(self, path: str, old: list[Schema], new: list[Schema]) -> None:
        before = {_name_of(self._old_root, each): each for each in _flat(old)}
        after = {_name_of(self._new_root, each): each for each in _flat(new)}
        if gone := sorted(before.keys() - after.keys()):
            self._say(path, f"it cannot be {gone} any more")
        more = sorted(after.keys() - before.keys())
        # Who reads one of several kinds looks which it is.
        is_told_apart = all(_tag_of(self._new_root, after[name]) for name in more) and any(
            _tag_of(self._old_root, each) for each in before.values()
        )
        if self._way == Way.TOLD and more and not is_told_apart:
            self._say(path, f"it can also be {more}")
        for name in sorted(before.keys() & after.keys()):
            self._compare(f"{path}<{name}>", before[name], after[name])

    def _compare_fields(self, path: str, old: Schema, new: Schema) -> None:
        before, after = old.get("properties", {}), new.get("properties", {})
        for name in sorted(before.keys() - after.keys()):
            self._say(f"{path}.{name}".lstrip("."), "it is gone")
        needed_before, needed = set(old.get("required", [])), set(new.get("required", []))
        for name in sorted(needed - needed_before):
            self._say(f"{path}.{name}".lstrip("."), "it must be there, and needed not be")
        if self._way == Way.TOLD:
            for name in sorted((needed_before - needed) & after.keys()):
                self._say(f"{path}.{name}".lstrip("."), "it was always there, and need not be")
        for name in sorted(before.keys() & after.keys()):
            self._compare(f"{path}.{name}".lstrip("."), before[name], after[name], was_needed=name in needed_before)
        others_before, others = old.get("additionalProperties", True), new.get("additionalProperties", True)
        if isinstance(others_before, dict) and isinstance(others, dict):
            self._compare(f"{path}.*".lstrip("."), others_before, others)
        elif others_before != others and not (self._way == Way.ASKED and others is True):
            self._say(path, "which other fields there may be is not what it was")


def _is_of_new_fields(shut_out: Schema, old: Schema) -> bool:
    """Whether what is shut out says a field that was not known before."""
    return bool(set(shut_out.get("required", ())) - old.get("properties", {}).keys())


def _held_before(rule: Schema, old: Schema) -> bool:
    """Whether one of the rule's alternatives asks no more than had to be said before."""
    return any(
        set(each.get("required", ())) <= set(old.get("required", ()))
        and all(
            old["properties"].get(name, {}).get(keyword) == value
            for name, asked in each.get("properties", {}).items()
            for keyword, value in asked.items()
        )
        for each in rule.get("anyOf", ())
    )


def _resolved(root: Schema, schema: Schema) -> Schema:
    name = schema.get("$ref", "")
    found: Schema = root["$defs"][name.rpartition("/")[2]] if name else schema
    return found


def _values(schema: Schema) -> set[str] | None:
    if "const" in schema:
        return {str(schema["const"])}
    return set(map(str, schema["enum"])) if "enum" in schema else None


def _flat(alternatives: list[Schema]) -> list[Schema]:
    """Alternatives of alternatives are alternatives."""
    return [inner for each in alternatives for inner in (_flat(each["anyOf"]) if each.keys() == {"anyOf"} else [each])]


def _tag_of(root: Schema, schema: Schema) -> str:
    """By which value of its `type` it is told apart; empty: by none."""
    return str(_resolved(root, schema).get("properties", {}).get("type", {}).get("const", ""))


def _name_of(root: Schema, schema: Schema) -> str:
    """What an alternative is known by: its tag, else its type and bounds."""
    full = _resolved(root, schema)
    named = schema.get("$ref", "").rpartition("/")[2]
    return _tag_of(root, schema) or str(named or full.get("type") or sorted(full.items()))

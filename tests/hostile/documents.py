"""Files as trees that edits break in ways a byte flip would never find; what is left can still be read up to the fault.

    file ──Form.parse──► tree ──Edit…──► tree ──Form.render──► bytes ──Edit of bytes…──► hostile file

An edit is JSON, so that a hostile file is a line of data: {"at": ["rope_scaling", "factor"], "set": "1e999"} puts this text
where a value stood; `drop`, `twice` and `rename` concern a key; `cut`, `put` and `flip` concern bytes; `whole` is the file.
"""

from __future__ import annotations

import json
import struct
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Edit = dict[str, Any]
Place = tuple[Any, ...]

# Texts that are too long to be written down, by name.
LONG = {
    "@deep": "[" * 100_000 + "]" * 100_000,
    "@deep objects": '{"a":' * 100_000 + "1" + "}" * 100_000,
    "@digits": "1" * 5_000,
    "@long": '"' + "a" * 100_000 + '"',
    "@laughs": "\n".join(["a0: &a0 [x, x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10))]),
    "@many": json.dumps({f"k{n}": n for n in range(100_000)}),
}
# Texts of JSON values that a reader may not expect.
NASTY = (
    *("null", "true", "false", "0", "-1", "1", "2", "3", "0.5", "-0.0", "1e-46", "1e-320", "1e38", "1e300", "1e999"),
    *("NaN", "Infinity", "-Infinity", "2147483648", "4294967296", "9223372036854775808", "1000000000000", "65536"),
    "1" * 45,
    *(
        '""',
        '"a"',
        '"64"',
        '"1e5"',
        r'"\ud800"',
        r'"\u0000"',
        r'"\u001b[31mred"',
        '"[/x]"',
        '"$\\\\frac$"',
        '"../../x"',
    ),
    *('"/etc/passwd"', '"²"', '"ﬁ"', '"' + "é" * 300 + '"'),
    *("[]", "{}", "[[]]", "[null]", "[1]", '["a"]', "[1, [2]]", '{"a": 1}', '{"": null}', '[{"a": []}]', "[1e999]"),
    *("@deep", "@deep objects", "@digits", "@long", "nonsense", ""),
)


class Raw(str):
    """A text that stands for itself in what is rendered."""

    __slots__ = ()


class Pairs(list[tuple[str, Any]]):
    """An object whose keys may be there twice."""


def parsed(text: str) -> Any:
    """A JSON text as a tree of lists and `Pairs`."""
    return json.loads(text, object_pairs_hook=Pairs)


def rendered(tree: Any) -> str:
    """The text of a tree."""
    if isinstance(tree, Raw):
        return LONG.get(tree, str(tree))
    if isinstance(tree, Pairs):
        return "{" + ", ".join(f"{json.dumps(name)}: {rendered(value)}" for name, value in tree) + "}"
    if isinstance(tree, list):
        return "[" + ", ".join(map(rendered, tree)) + "]"
    return json.dumps(tree)


def places(tree: Any, here: Place = ()) -> Iterator[Place]:
    """Where values stand; of long lists the first ones."""
    yield here
    if isinstance(tree, Pairs):
        for name, value in tree[:200]:
            yield from places(value, (*here, name))
    elif isinstance(tree, list):
        for number, value in enumerate(tree[:4]):
            yield from places(value, (*here, number))


def edited(tree: Any, edit: Edit) -> Any:
    """The tree after an edit; the tree itself where the edit's place is not (any more) there."""
    return _at(tree, tuple(edit["at"]), edit)


def _at(tree: Any, place: Place, edit: Edit) -> Any:
    if not place:
        return Raw(edit["set"]) if "set" in edit else tree
    first, rest = place[0], place[1:]
    if isinstance(tree, Pairs) and any(name == first for name, _ in tree):
        found = Pairs()
        for name, value in tree:
            found += _pairs(name, value, rest, edit) if name == first else [(name, value)]
        return found
    if isinstance(tree, Pairs) and not rest and "set" in edit:
        return Pairs([*tree, (first, Raw(edit["set"]))])
    if isinstance(tree, list) and not isinstance(tree, Pairs) and isinstance(first, int) and first < len(tree):
        inner = [] if not rest and edit.get("drop") else [_at(tree[first], rest, edit)]
        return [*tree[:first], *inner * (2 if not rest and edit.get("twice") else 1), *tree[first + 1 :]]
    return tree


def _pairs(name: str, value: Any, rest: Place, edit: Edit) -> list[tuple[str, Any]]:
    if rest or "set" in edit:
        return [(name, _at(value, rest, edit))]
    if edit.get("drop"):
        return []
    return [(edit["rename"], value)] if "rename" in edit else [(name, value)] * (2 if edit.get("twice") else 1)


def with_bytes(content: bytes, edit: Edit) -> bytes:
    """The content after an edit of bytes; places are shares of its length, so that they hold for another one, too."""
    if "whole" in edit:
        return LONG.get(edit["whole"], edit["whole"]).encode("utf-8", "surrogatepass")
    at = min(int(edit.get("share", 0) * len(content)), max(len(content) - 1, 0))
    if edit.get("cut"):
        return content[:at]
    if "flip" in edit and content:
        return content[:at] + bytes([content[at] ^ edit["flip"]]) + content[at + 1 :]
    if "put" in edit:
        return content[:at] + bytes.fromhex(edit["put"]) + content[at + int(edit.get("over", 0)) :]
    return content


@dataclass(frozen=True)
class Form:
    """How a kind of file becomes a tree and bytes again; this one is bytes alone."""

    def parse(self, content: bytes) -> Any:
        """None where there is no tree."""
        return None

    def render(self, tree: Any, content: bytes) -> bytes:
        """Raises ValueError where a tree cannot be written in this form."""
        return content

    def hostile(self, content: bytes, edits: Sequence[Edit]) -> bytes:
        """A sound file's content after edits."""
        tree = self.parse(content)
        for edit in edits:
            tree = edited(tree, edit) if "at" in edit else tree
        if any("at" in edit for edit in edits):
            content = self.render(tree, content)
        for edit in edits:
            content = content if "at" in edit else with_bytes(content, edit)
        return content


class Json(Form):
    """One JSON value; YAML of the same looks is read by YAML's readers."""

    def parse(self, content: bytes) -> Any:
        return parsed(content.decode())

    def render(self, tree: Any, content: bytes) -> bytes:
        return rendered(tree).encode("utf-8", "surrogatepass")


class Lines(Form):
    """A JSON value a line."""

    def parse(self, content: bytes) -> Any:
        return [parsed(line) for line in content.decode().splitlines()]

    def render(self, tree: Any, content: bytes) -> bytes:
        return "".join(f"{rendered(line)}\n" for line in tree).encode("utf-8", "surrogatepass")


class Text(Form):
    """Lines of text, each `name = value`, `name: value` or nothing of the kind; values are replaced as they are."""

    def parse(self, content: bytes) -> Any:
        return [_parts(line) for line in content.decode().splitlines()]

    def render(self, tree: Any, content: bytes) -> bytes:
        lines = [
            rendered(line) if isinstance(line, Raw) else "".join(rendered(p) if isinstance(p, Raw) else p for p in line)
            for line in tree
        ]
        return "\n".join([*lines, ""]).encode("utf-8", "surrogatepass")


def _parts(line: str) -> list[str]:
    for mark in (" = ", ": ", ","):
        head, found, tail = line.partition(mark)
        if found:
            return [head, found, tail]
    return [line]


class Safetensors(Form):
    """The header; the numbers stay as they are."""

    def parse(self, content: bytes) -> Any:
        return parsed(content[8 : 8 + int.from_bytes(content[:8], "little")].decode())

    def render(self, tree: Any, content: bytes) -> bytes:
        head = rendered(tree).encode("utf-8", "surrogatepass")
        return len(head).to_bytes(8, "little") + head + content[8 + int.from_bytes(content[:8], "little") :]


@contextmanager
def _as_file(content: bytes) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as room:
        path = Path(room, "file.gguf")
        path.write_bytes(content)
        yield path


class Gguf(Form):
    """Keys and tensor infos; a value of another type is written as GGUF's type for it."""

    def parse(self, content: bytes) -> Any:
        from converters.gguf.container import GgufPart

        with _as_file(content) as path:
            part = GgufPart(path)
            keys = Pairs(
                (key, list(value.data) if value.item is not None else value.data) for key, value in part.values.items()
            )
            tensors = Pairs(
                (name, Pairs([("shape", list(info.shape)), ("type", info.type), ("offset", info.offset)]))
                for name, info in part.tensors.items()
            )
            part.close()
        return Pairs([("keys", keys), ("tensors", tensors)])

    def render(self, tree: Any, content: bytes) -> bytes:
        from converters.gguf.container import GgufPart, Value

        with _as_file(content) as path:
            part = GgufPart(path)
            kinds, data = part.values, content[part.data_start :]
            part.close()
        plain = json.loads(rendered(tree), object_pairs_hook=Pairs)
        if not isinstance(plain, Pairs) or [name for name, _ in plain] != ["keys", "tensors"]:
            raise ValueError(plain)
        (_, keys), (_, tensors) = plain
        head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(keys))
        for key, value in keys:
            known = kinds.get(key)
            head += _string(key) + _value(value, known if isinstance(known, Value) else None)
        for name, info in tensors:
            facts = dict(info)
            shape = list(facts.get("shape", []))[::-1]
            head += _string(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
            head += struct.pack("<IQ", facts.get("type", 0), facts.get("offset", 0))
        return head + bytes(-len(head) % 32) + data


def _string(text: str) -> bytes:
    data = text.encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(data)) + data


def _value(data: Any, known: Any) -> bytes:
    from converters.gguf.container import Value
    from converters.gguf.native import gguf

    types = gguf.GGUFValueType
    if known is not None:
        try:
            return Value(known.kind, tuple(data) if known.item is not None else data, known.item).encoded
        except (struct.error, AttributeError, TypeError, KeyError, UnicodeEncodeError):
            pass
    if isinstance(data, bool):
        return struct.pack("<I?", types.BOOL, data)
    if isinstance(data, int):
        return struct.pack("<Iq", types.INT64, max(-(2**63), min(data, 2**63 - 1)))
    if isinstance(data, float):
        return struct.pack("<Id", types.FLOAT64, data)
    if isinstance(data, str):
        return struct.pack("<I", types.STRING) + _string(data)
    if isinstance(data, list) and data and all(isinstance(item, str) for item in data):
        return struct.pack("<IIQ", types.ARRAY, types.STRING, len(data)) + b"".join(map(_string, data))
    if isinstance(data, list) and all(isinstance(item, int) and abs(item) < 2**63 for item in data):
        return struct.pack(f"<IIQ{len(data)}q", types.ARRAY, types.INT64, len(data), *data)
    raise ValueError(data)


class Onnx(Form):
    """The graph as protobuf's own JSON; what that does not take is no ONNX file."""

    def parse(self, content: bytes) -> Any:
        import onnx
        from google.protobuf.json_format import MessageToJson

        return parsed(MessageToJson(onnx.ModelProto.FromString(content), preserving_proto_field_name=True))

    def render(self, tree: Any, content: bytes) -> bytes:
        import onnx
        from google.protobuf.json_format import Parse, ParseError

        try:
            return bytes(Parse(rendered(tree), onnx.ModelProto()).SerializeToString())
        except (ParseError, RecursionError, UnicodeEncodeError) as error:
            raise ValueError(str(error)[:80]) from None

"""What of a JSON schema's strings llguidance reads as the specification does: formats, patterns.

Pure. Formats become what it can hold exactly, or are refused.
"""

from __future__ import annotations

import re
from typing import Any

from openai_local.engine.errors import ConstraintUnsupported

Schema = dict[str, Any]
# llguidance compares in doubles, and integers of 64 bits.
MAX_BOUND = 2**63 - 1024

_DATE = (
    "([0-9]{4}-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)"
    "|02-(0[1-9]|1[0-9]|2[0-8]))|([0-9]{2}(0[48]|[2468][048]|[13579][26])"
    "|([02468][048]|[13579][26])00)-02-29)"
)
_TIME = (
    r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]+)?([zZ]|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"
)
# Where llguidance's own let days through that are not in the calendar; and OpenAPI's base64.
_PATTERNS = {
    "date": f"^{_DATE}$",
    "time": f"^{_TIME}$",
    "date-time": f"^{_DATE}[tT]{_TIME}$",
    "byte": "^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$",
}
_HEX = "%[0-9A-Fa-f]{2}"
_NAME_CHAR = f"([A-Za-z0-9_]|{_HEX})"
_VARIABLE = rf"{_NAME_CHAR}(\.?{_NAME_CHAR})*(:[1-9][0-9]{{0,3}}|\*)?"
_POINTER = "(/([^~/]|~[01])*)*"
_PATTERNS |= {
    "json-pointer": f"^{_POINTER}$",
    "relative-json-pointer": f"^(0|[1-9][0-9]*)(#|{_POINTER})$",
    # RFC 6570, literals in Unicode.
    "uri-template": rf"^([!#$&(-;=?-\[\]_a-z~\u{{a1}}-\u{{10ffff}}]|{_HEX}"
    rf"|\{{[+#./;?&=,!@|]?{_VARIABLE}(,{_VARIABLE})*\}})*$",
}
_FORMATS = frozenset({"duration", "email", "hostname", "ipv4", "ipv6", "uri", "uuid"})
# OpenAPI's, of numbers: bounds, or nothing.
_NUMBER_FORMATS: dict[str, int | None] = {
    "int32": 2**31 - 1,
    "int64": MAX_BOUND,
    "float": None,
    "double": None,
}


def restate_format(schema: Schema) -> None:
    """In place. Raises ConstraintUnsupported."""
    name = schema.get("format")
    if name is None or name in _FORMATS:
        return
    if name in _PATTERNS:
        del schema["format"]
        if "pattern" in schema:
            schema.setdefault("allOf", []).append({"pattern": _PATTERNS[name]})
        else:
            schema["pattern"] = _PATTERNS[name]
    elif name in _NUMBER_FORMATS and is_never(schema, "string"):
        del schema["format"]
        if (bound := _NUMBER_FORMATS[name]) is not None:
            schema["minimum"] = max(schema.get("minimum", -bound), -bound)
            schema["maximum"] = min(schema.get("maximum", bound), bound)
    else:
        raise ConstraintUnsupported("format", f"the format {name!r} is not known")


def is_never(schema: Schema, type_: str) -> bool:
    types = schema.get("type", type_)
    return type_ not in (types if isinstance(types, list) else [types])


# What Rust's syntax reads otherwise than ECMA's: escapes, and sets within classes.
_OTHER_ESCAPE = re.compile(r"(?:[^\\]|^)(?:\\\\)*\\([aAzU])")
_ESCAPED = re.compile(r"\\.", re.DOTALL)
_CLASS = re.compile(r"\[\^?\]?([^\]]*)\]")
_SET = re.compile(r"\[|&&|--|~~")


def check_pattern(keyword: str, pattern: str) -> None:
    escape = _OTHER_ESCAPE.search(pattern)
    if escape is not None:
        raise ConstraintUnsupported(keyword, f"\\{escape.group(1)} is not known")
    for chars in _CLASS.findall(_ESCAPED.sub("x", pattern)):
        if _SET.search(chars):
            raise ConstraintUnsupported(keyword, f"[{chars}] is not plain: escape it")

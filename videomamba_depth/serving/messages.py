"""The binary messages of the page: JSON, and byte strings after it."""

from __future__ import annotations

import json
import struct
from typing import Any

LENGTH = struct.Struct("<I")


def message(about: dict[str, Any], *parts: bytes) -> bytes:
    """Return bytes: length of the JSON (uint32, little-endian), JSON with the lengths of the parts, the parts."""
    head = json.dumps({**about, "pictures": [len(part) for part in parts]}).encode()
    return b"".join([LENGTH.pack(len(head)), head, *parts])

"""The header of a safetensors file, checked against the file before any tensor is read."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

from lorafleet_serving.exceptions import AdapterRefusal

_MAX_HEADER_BYTES = 16 << 20
_MAX_DIMS = 8
_ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2}


@dataclass(frozen=True)
class TensorHeader:
    """What the header says of one tensor."""

    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def num_elements(self) -> int:
        """Product of the shape."""
        return math.prod(self.shape)


def read_header(path: Path) -> dict[str, TensorHeader]:
    """Read and check the header of an adapter's weights.

    Raises:
        AdapterRefusal: the file is truncated, or its header is malformed, too long, or claims more than there is.
    """
    num_file_bytes = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        num_header_bytes = int.from_bytes(prefix, "little")
        if len(prefix) < 8 or num_header_bytes > min(num_file_bytes - 8, _MAX_HEADER_BYTES):
            raise AdapterRefusal(
                f"{path.name} has {num_file_bytes} bytes and claims a header of {num_header_bytes}, "
                f"at most {_MAX_HEADER_BYTES} is read: the file is damaged or hostile"
            )
        text = file.read(num_header_bytes)
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise AdapterRefusal(f"header of {path.name} is not JSON: the file is damaged") from error
    if not isinstance(entries, dict):
        raise AdapterRefusal(f"header of {path.name} is not a JSON object: the file is damaged")
    headers = {str(name): _header(str(name), entry) for name, entry in entries.items() if name != "__metadata__"}
    num_data_bytes = num_file_bytes - 8 - num_header_bytes
    claimed = sum(header.end - header.start for header in headers.values())
    if claimed != num_data_bytes:
        raise AdapterRefusal(
            f"{path.name} holds {num_data_bytes} bytes of tensors and its header claims {claimed}: "
            "the file is truncated or damaged"
        )
    return headers


def _header(name: str, entry: object) -> TensorHeader:
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(start), int(end)]}:
            pass
        case _:
            raise AdapterRefusal(f"header entry of adapter tensor {name} is malformed: the file is damaged")
    if dtype not in _ITEM_BYTES:
        raise AdapterRefusal(f"adapter tensor {name} has dtype {dtype}, served are {sorted(_ITEM_BYTES)}")
    # Their product is a number as long as all of them together: of a million sizes it would take hours.
    if len(shape) > _MAX_DIMS:
        raise AdapterRefusal(f"adapter tensor {name} has {len(shape)} dimensions, at most {_MAX_DIMS} are read")
    if not all(isinstance(size, int) and size > 0 for size in shape):
        raise AdapterRefusal(f"adapter tensor {name} has shape {shape}, sizes must be positive")
    if start < 0 or end - start != math.prod(shape) * _ITEM_BYTES[dtype]:
        raise AdapterRefusal(f"adapter tensor {name} has shape {shape} and {end - start} bytes: the file is damaged")
    return TensorHeader(tuple(shape), start, end)

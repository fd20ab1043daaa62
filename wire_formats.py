"""What a feature map travels as: the formats of WIRE_FORMATS."""
from __future__ import annotations

from typing import Dict

WIRE_BYTES_PER_ELEMENT: Dict[str, float] = {'float32': 4}

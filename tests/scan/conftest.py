"""Makes `import scan_cases` work, and poisons memory that a kernel forgets to write.

The folder is not named like the package: `tests` is on sys.path, and a folder there would hide an editable install.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def nan_in_empty_tensors() -> Iterator[None]:
    """torch.empty gives NaN, as deterministic mode promises, so that every element has to be written."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(1).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)

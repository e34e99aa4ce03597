"""The built-in default model: a small Llama with a 256-token window, and held-out texts to judge it on.

This module only names places; it imports neither torch nor transformers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

_HERE: Final = Path(__file__).resolve().parent

CHECKPOINT: Final = _HERE / "checkpoint"
"""Folder of the committed Hugging Face checkpoint."""

SEARCH_TEXTS: Final = _HERE / "texts" / "search"
"""Folder of held-out documents that a search may look at."""

TEST_TEXTS: Final = _HERE / "texts" / "test"
"""Folder of held-out documents for the final numbers only."""

__all__ = ["CHECKPOINT", "SEARCH_TEXTS", "TEST_TEXTS"]

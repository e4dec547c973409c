"""DeepSeek V3.2: V3 with an index that chooses the positions which attention reads."""

from ikq.models.deepseek2 import build_indexed as build
from ikq.models.deepseek2 import convert_indexed as convert

__all__ = ["build", "convert"]

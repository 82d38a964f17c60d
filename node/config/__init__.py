"""Where settings come from, and what is wrong with them. ``load`` is the way in."""

from spread.node.config.load import FILE_MAX_BYTES, load
from spread.node.config.values import ConfigError

__all__ = ["FILE_MAX_BYTES", "ConfigError", "load"]

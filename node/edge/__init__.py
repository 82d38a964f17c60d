"""Twisted protocols: bytes in, frames out, no decisions."""

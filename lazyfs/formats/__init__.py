"""Formats: bytes in, values out. No I/O, no clock; `docs/format.md` specifies each to the byte."""

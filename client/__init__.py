"""Clients of Spread: the `spread` command and the text client behind it."""

if __name__ != "spread.client":
    raise ImportError(
        f"this package is spread.client; it was imported as {__name__}, which would make a second copy of it"
    )

"""Where shards meet: everything that goes through Redis or Valkey, behind one typed promise."""

if __name__ != "spread.hub":
    raise ImportError(
        f"this package is spread.hub; it was imported as {__name__}, which would make a second copy of it"
    )

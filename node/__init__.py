"""One shard: sockets, sessions and channels of one worker process."""

if __name__ != "spread.node":
    raise ImportError(
        f"this package is spread.node; it was imported as {__name__}, which would make a second copy of it"
    )

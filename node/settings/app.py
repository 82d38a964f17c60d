"""The section ``app``: a team's own code in the shard. Values only."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from spread.node.settings.kinds import Section

__all__ = ["AppSettings"]

Seconds = Annotated[float, Meta(gt=0, le=3600)]


class AppSettings(Section, frozen=True, kw_only=True):
    """A team's own code in the shard."""

    app: Annotated[
        str,
        Meta(
            description="MODULE:CLASS of the application, a subclass of spread.node.App; the working "
            "directory is looked at first. Empty: none."
        ),
    ] = ""
    tables: Annotated[
        str,
        Meta(
            description="Directory of the tables that `spread tables build` has made; they are served at "
            "/tables/NAME.json. Empty: none."
        ),
    ] = ""
    tables_max_bytes: Annotated[
        int,
        Meta(ge=1024, le=1 << 30, description="How large the files of all tables may be together."),
    ] = 16 << 20
    hook_seconds: Annotated[
        Seconds,
        Meta(
            description="How long a hook of the application may take; then its client gets error 100. The "
            "hub's time, `hub.publish_seconds`, begins after the hook; `connecting` also ends with "
            "`client.stale_close_delay`."
        ),
    ] = 5.0
    block_seconds: Annotated[
        float,
        Meta(gt=0, le=60, description="A hook that holds up the shard for so long is named in the log."),
    ] = 0.1
    load_seconds: Annotated[
        Seconds,
        Meta(description="How long the import of the application may take, and each step of an update."),
    ] = 5.0
    state_max_bytes: Annotated[
        int,
        Meta(
            ge=1024,
            le=1 << 28,
            description="How large the state may be that the application hands over to its next version.",
        ),
    ] = 4 << 20
    max_waiting_hooks: Annotated[
        int,
        Meta(
            ge=1,
            le=10_000_000,
            description="Hooks that may wait for something at a time; one more is answered with error 100.",
        ),
    ] = 10_000
    max_timers: Annotated[
        int,
        Meta(ge=1, le=10_000_000, description="Timers that the application may have at a time."),
    ] = 10_000
    max_objects: Annotated[
        int,
        Meta(ge=1, le=10_000_000, description="Channels that this shard may own at a time."),
    ] = 10_000
    max_reported_members: Annotated[
        int,
        Meta(
            ge=1,
            le=100_000_000,
            description="Members, on all shards, of the channels that this shard looks after.",
        ),
    ] = 1_000_000
    max_commands: Annotated[
        int,
        Meta(
            ge=1,
            le=10_000_000,
            description="Commands that may wait on this shard for their answers, and for the object of one "
            "channel; one more is answered with error 111.",
        ),
    ] = 10_000
    command_seconds: Annotated[
        Seconds,
        Meta(description="How long a command may take, the search for the owner included."),
    ] = 5.0
    snapshot_max_bytes: Annotated[
        int,
        Meta(ge=1024, le=1 << 20, description="How large the snapshot of an object may be."),
    ] = 1 << 20
    snapshot_ttl_seconds: Annotated[
        int,
        Meta(ge=10, le=86400 * 30, description="How long a snapshot is kept after it was made."),
    ] = 3600

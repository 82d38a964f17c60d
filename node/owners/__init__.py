"""Channels with one owner: the shard that runs a channel's object, and the way to it."""

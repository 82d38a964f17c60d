"""The Lua scripts that run inside Redis, one file each."""

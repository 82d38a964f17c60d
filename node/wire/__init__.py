"""Sans-IO codecs: bytes to values and back. No Twisted, no sockets, no clock."""

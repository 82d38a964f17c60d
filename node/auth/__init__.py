"""Who a client is, and what it may do: tokens and their keys, and the permissions of channels."""

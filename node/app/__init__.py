"""The app: the team's own game logic, loaded into a shard."""

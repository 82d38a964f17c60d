"""Sessions: one connected client each, whatever its transport. They decide; edges only carry bytes."""

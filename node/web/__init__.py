"""HTTP: the public site and the ops site, and how request bodies are taken in."""

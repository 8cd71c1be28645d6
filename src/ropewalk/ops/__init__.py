"""The rotation of queries and keys."""

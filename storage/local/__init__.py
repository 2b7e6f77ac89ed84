"""The storage of a single machine: SQLite and a folder."""

"""The storage of several machines: PostgreSQL and a bucket."""

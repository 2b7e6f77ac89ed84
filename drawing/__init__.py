"""One drawing: its record and verdict, a backend's part, cooldowns, the pool, storing."""

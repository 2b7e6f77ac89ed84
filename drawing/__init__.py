"""One drawing: its record and verdict, a backend's part, cooldowns, limits, the pool, storing."""

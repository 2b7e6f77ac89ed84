"""One drawing: its record and verdict, who draws, cooldowns, limits, the pool, storing."""

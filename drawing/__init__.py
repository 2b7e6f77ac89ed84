"""One drawing: its record and verdict, who draws, cooldowns, the pool, storing the picture."""

<<<<<<< HEAD
"""One drawing: its record and verdict, who draws, cooldowns, the pool, storing the picture."""
=======
"""One drawing: its record and verdict, a backend's part, cooldowns, limits, the pool, storing."""
>>>>>>> main

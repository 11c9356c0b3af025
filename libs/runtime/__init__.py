"""How a process of the platform lives: its connections, its health, its end."""

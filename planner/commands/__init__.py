"""The commands of `planner`, one a module: its flags, and what it does with them."""

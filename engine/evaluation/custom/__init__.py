"""Tasks that ask or measure in a way of their own; a task file names the class as `module`."""

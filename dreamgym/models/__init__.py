"""The networks of the world model: pure torch, no files, no global state."""

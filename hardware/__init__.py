"""What the machine is, what it can do, and how to time on it."""

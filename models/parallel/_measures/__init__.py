"""What the ranks are asked beside the timed calls."""

"""Starting ranks with PyTorch's launcher, talking to them, and saying how one ended."""

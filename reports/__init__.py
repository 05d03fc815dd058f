"""Results in, board out. Reads result files and the vocabulary only; imports no torch."""

"""asv suites, one thin file per track. What they measure follows from the track's package."""

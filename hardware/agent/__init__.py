"""The agent: a board that measures new commits by itself and delivers what it found.

It starts processes and moves files; it measures nothing itself and needs no torch. What it must not lose lies in one
folder, and whatever it was doing when the power went is found there again.
"""

"""Doing it: runs a plan with loads, compute and stores overlapped."""

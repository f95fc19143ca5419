"""What to do with a machine: the policy search. Never imports torch."""

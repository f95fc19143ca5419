"""Probes: each module measures one kind of quantity and prints nothing."""

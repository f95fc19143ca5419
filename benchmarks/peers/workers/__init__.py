"""What runs in a peer's own process: the only modules that import a peer."""

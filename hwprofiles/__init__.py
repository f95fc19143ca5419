"""What a machine can do: measured hardware profiles, read and written as YAML."""

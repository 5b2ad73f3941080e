"""The Tera-MIND network, its configuration and its checkpoints."""

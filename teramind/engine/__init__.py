"""The way of a whole brain through the network: frame, tiles, state."""

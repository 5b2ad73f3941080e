"""Training: crops, objective, optimiser, moving average, state and logs, and the command that joins them."""

"""Schedule, noise, sampling and training loss: functions without state."""

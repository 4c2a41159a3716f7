"""Studies of what a trained model makes of sounds."""

"""What a training step takes in memory, found before any weight is loaded."""

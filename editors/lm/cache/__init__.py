"""What the frozen model computes on a text, kept for the next time the text comes."""

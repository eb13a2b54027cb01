"""EasyEdit's archives: written, and read without unpickling."""

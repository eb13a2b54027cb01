"""The editing methods, one folder each, and what they share. `make` is the one way from requests to an edit."""

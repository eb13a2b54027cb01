"""What every floor above uses: errors, files, hashes, collectives. It knows nothing of models or texts."""

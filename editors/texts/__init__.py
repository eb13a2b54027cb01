"""Edit requests, and the texts that models read: tokens, batches of them, files of requests."""

"""From edit requests to an edit: what every method is (`EditMethod.make`), and what methods share. No Trainer."""

"""The report card of an edit: what a user meets who asks the edited model."""

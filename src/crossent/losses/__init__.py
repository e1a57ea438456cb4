"""What people call: the losses as functions and as modules."""

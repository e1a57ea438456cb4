"""What a call says: its options, its target, its penalty, and how rows become one number."""

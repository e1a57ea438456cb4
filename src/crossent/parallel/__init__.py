"""Beyond one device: classes that lie on several, and what they tell each other."""

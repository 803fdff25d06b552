"""A person attacks: the red-teaming page."""

"""One run's weights with everything that says what they are, tied by one manifest of hashes."""

"""What is written about a study: numbers by name, drafts, and the lint of prose."""

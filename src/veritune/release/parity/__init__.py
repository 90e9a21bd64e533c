"""Does what is shipped still say what was trained? Merged weights, exports, and served models."""

"""Where bundles go: channels, model hubs, and the way back."""

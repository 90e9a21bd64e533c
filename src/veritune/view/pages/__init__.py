"""The pages: each takes the desk and a request, and answers."""

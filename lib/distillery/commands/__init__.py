"""What a person calls with images of their own, one file a command; `distillery.api` has the functions."""

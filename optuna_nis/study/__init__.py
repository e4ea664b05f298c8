"""What a study holds, and where it is kept."""

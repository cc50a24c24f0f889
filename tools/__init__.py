"""What the project was made with: in the repository, outside the wheel."""

"""Window to proposals."""

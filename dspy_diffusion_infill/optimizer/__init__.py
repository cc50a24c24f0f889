"""The optimizer: search over proposals, validated with the metric."""

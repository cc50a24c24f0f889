"""Every ``dspy.LM`` that this package makes. Light: models are loaded with the first answer."""

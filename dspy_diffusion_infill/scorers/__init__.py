"""How likely a response is: screens proposals before a metric call is spent. Light: no torch."""

"""The paper's evaluation: judges, data sets, measures, and its tables as commands."""

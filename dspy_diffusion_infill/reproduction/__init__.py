"""The paper's experiments, one command each: data, prompts, models, tables and plots."""

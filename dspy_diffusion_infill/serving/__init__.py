"""Serves a denoiser over HTTP; ``denoisers.remote`` is its client. Needs the extra ``serve``."""

"""The worked tasks that the embedded denoiser was trained on."""

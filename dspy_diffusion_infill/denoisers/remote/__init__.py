"""A denoiser on another machine: what goes over the wire, and the client. Light: no torch."""

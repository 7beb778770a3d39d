"""Where the stream executor computes: one module a device."""

"""Small square images of grey levels, by the native decoder."""

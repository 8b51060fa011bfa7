"""zippkit's own towers, registered through the same entry points that a third party uses."""

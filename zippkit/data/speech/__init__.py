"""Speech tokenizers and vocoders that need torch; `zippkit.data` finds them by name, and never imports them."""

"""What a person sees of an explanation: in a terminal, on a page."""

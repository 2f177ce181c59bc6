"""What a propagation works with: the function mode, stand-ins for forwards, and what they see."""

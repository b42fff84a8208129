"""What single commands do: harden, attack, evaluate, calibrate and diagnose one model, compare a few in a chat."""

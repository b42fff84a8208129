"""What single commands do: harden, attack, evaluate, calibrate and diagnose one model."""

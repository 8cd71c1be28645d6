"""How fast the rotation and whole models are, on this device, against others in the same process."""

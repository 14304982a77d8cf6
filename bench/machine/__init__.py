"""Facts of this machine, claims on its devices, and what its meters can read."""

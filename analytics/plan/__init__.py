"""What a training would take: devices, time, energy, cost."""

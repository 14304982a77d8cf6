"""When a device has ended the steps that the host has made."""

from __future__ import annotations

from time import monotonic_ns

import torch


class DeviceClock:
    """Events of a device by the number of a step, related to the clock of the host. After its begin nothing waits."""

    def __init__(self, device):
        self.device, self.pending = device, []
        torch.cuda.synchronize(device)
        self.event = torch.cuda.Event(enable_timing=True)
        self.event.record(torch.cuda.current_stream(device))
        self.event.synchronize()
        self.now = float(monotonic_ns())

    def record(self, number):
        """Record an event for a step."""
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        self.pending.append((number, event))

    def ended(self):
        """Return numbers and times, as JSON, of the steps that the device has ended since the last call."""
        times = []
        while self.pending and self.pending[0][1].query():
            number, event = self.pending.pop(0)
            self.now += self.event.elapsed_time(event) * 1e6  # ms, a float: short spans are exact
            self.event = event
            times.append("[%d,%d]" % (number, self.now))
        return ",".join(times)

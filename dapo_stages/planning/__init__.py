"""What a run takes before it starts: memory, time, exchange between ranks."""

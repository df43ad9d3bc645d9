"""How an update is spread over ranks: accelerate, DeepSpeed, FSDP2."""

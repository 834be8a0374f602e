"""How the student's parameters are trained, sharded and saved: DeepSpeed, optimizer, schedule, checkpoints."""

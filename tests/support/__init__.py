"""What tests share: harnesses, played peers, oracles and waits. One name for each thing; typed, and read by mypy."""

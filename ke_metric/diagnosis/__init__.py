"""What is wrong with the environment, and the command that mends it; survives libraries that cannot be imported."""
